"""Parameters of the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import luigi

from analysis.errors import UserError, nearest


class OverridesParameter(luigi.Parameter):
    """``--set KEY=VALUE``, any number of times."""

    def parse(self, value: str | Sequence[str]) -> tuple[str, ...]:
        """Read what argparse collected, or the text that `serialize` wrote."""
        if isinstance(value, str):
            return tuple(json.loads(value)) if value.startswith("[") else (value,)
        return tuple(value)

    def serialize(self, value: Sequence[str]) -> str:
        """Write all overrides as one JSON list, for other processes."""
        return json.dumps(list(value))

    @classmethod
    def _parser_kwargs(cls, param_name: str, task_name: str | None = None) -> dict[str, Any]:
        return {**super()._parser_kwargs(param_name, task_name), "action": "append"}


class ReasonParameter(luigi.Parameter):
    """``--adopt REASON``, which may not be blank."""

    @classmethod
    def _parser_kwargs(cls, param_name: str, task_name: str | None = None) -> dict[str, Any]:
        return {**super()._parser_kwargs(param_name, task_name), "type": _reason}


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a reason is needed: it is kept in the provenance")
    return text


class ChoiceParameter(luigi.Parameter):
    """One of some names.

    Args:
        choices: The names.
        option: What the parameter is called on the command line.
    """

    def __init__(self, *args: Any, choices: Sequence[str], option: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._choices, self._option = choices, option

    def parse(self, value: str) -> str:
        """Check the name.

        Raises:
            UserError: It is none of them.
        """
        if value not in self._choices:
            raise UserError(f"{self._option} {value}: there is no such thing. {nearest(value, self._choices)}")
        return value
