"""Parameters of the command line."""

from __future__ import annotations

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
