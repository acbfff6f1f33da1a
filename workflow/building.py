"""Building tasks fast: law and luigi look the same things up for every branch of a graph.

A graph of 1,000 branches takes four to six times as long without this (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import law
import luigi


class BuiltOnce(law.Task):
    """A task whose class and requirements are looked up once."""

    exclude_index = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "requires" in vars(cls):
            cls.requires = _once(cls.requires)

    @classmethod
    @cache
    def get_params(cls) -> list[tuple[str, luigi.Parameter]]:
        """The parameters, looked up once per class: luigi asks for them several times for each task."""
        return super().get_params()

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Values of all parameters, those that nobody gives looked up once per class."""
        if not args:
            kwargs = _defaults(cls, luigi.cmdline_parser.CmdlineParser.get_instance()) | kwargs  # type: ignore[arg-type]
        return super().get_param_values(params, args, kwargs)

    @classmethod
    def req_params(cls, inst: Any, _exclude: Any = (), **kwargs: Any) -> dict[str, Any]:
        """Parameters that a required task takes over, and those given: law's rule, asked once per pair of classes."""
        exclude = frozenset(law.util.make_list(_exclude))
        rules = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("_")}
        key = cls, type(inst), exclude, str(rules)
        if key not in _taken_over:
            _taken_over[key] = tuple(super().req_params(inst, _exclude=set(exclude), **rules))
        return {name: getattr(inst, name) for name in _taken_over[key]} | kwargs


_taken_over: dict[Any, tuple[str, ...]] = {}
"""Names of parameters that tasks of one class take over from tasks of another, without some."""


@cache
def _defaults(cls: Any, _parser: Any) -> dict[str, Any]:
    """Values of parameters that nobody gives: from the command line, the configuration or the class."""
    family = cls.get_task_family()
    return {name: p.task_value(family, name) for name, p in cls.get_params() if p.has_task_value(family, name)}


def _once(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A method without arguments that answers each object once: building what a task requires takes law long."""

    @wraps(method)
    def answer(self: Any) -> Any:
        answers = self.__dict__.setdefault("_answers", {})
        if method not in answers:
            answers[method] = method(self)
        return answers[method]

    return answer
