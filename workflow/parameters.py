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


class WorkflowParameter(luigi.Parameter):
    """``--workflow TYPE``."""

    TYPES = ("local", "dask")

    def parse(self, value: str) -> str:
        """Check the name of the type.

        Raises:
            UserError: There is no such type.
        """
        if value not in self.TYPES:
            raise UserError(f"--workflow {value}: there is no such type. {nearest(value, self.TYPES)}")
        return value
