"""The one exception type for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in configuration or input: said once, in full sentences, without a traceback.

    The message names the place (file, tree, branch, key or event), what was found, what was expected, and what
    to do next.

    Attributes:
        damage: What is wrong with a bad input file, without its path; empty for all other mistakes.
    """

    damage: str = ""


def bad_file(path: str, damage: str, remedy: str = "Copy it again.") -> UserError:
    """The mistake that an input file is bad, which `data.on_bad_file: skip` forgives.

    Args:
        path: File or URL.
        damage: What is wrong, as what follows the path in a sentence.
        remedy: A sentence that says how to mend it.
    """
    error = UserError(f"{path} {damage}. {remedy} To go on without such files, set data.on_bad_file to skip.")
    error.damage = damage
    return error


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Return a sentence that suggests the valid names closest to a misspelt one.

    Args:
        name: What was written.
        valid: The names that would have been accepted.
        count: How many suggestions at most.

    Returns:
        ``"Did you mean 'a' or 'b'?"``, or a list of what is there if nothing comes near; empty without any.
    """
    names = sorted({str(v) for v in valid})
    if not names:
        return ""
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"Valid names: {shown}."
