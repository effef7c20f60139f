"""What is wrong in a file of captions, counted by reason: an error, or left out and said."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mmadapter.errors import InputError

log = logging.getLogger(__name__)
ON_BAD = ("error", "skip")
EXAMPLES = 5
EMPTY_CAPTION = "empty captions"
NO_CAPTION = "pictures without a caption"
BAD_ENTRY = "entries that cannot be read"
ID_TWICE = "ids that stand twice"
NOT_HERE = "listed pictures that the caption files lack"
HARMLESS = (EMPTY_CAPTION, NO_CAPTION, NOT_HERE)  # said, but no reason to stop a training run


@dataclass
class Defects:
    """Items that cannot be used, by reason: how many, how many captions are lost with them, the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str, captions: int = 1) -> None:
        """Counts one item; `where` names file and place, and what was found there."""
        self.counts[reason] += 1
        self.captions[reason] += captions
        examples = self.first.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(where)

    def line(self, reason: str) -> str:
        """The reason with its count and the first places."""
        return f"{self.counts[reason]:,} {reason}, the first: {'; '.join(self.first[reason])}"

    def settle(self, on_bad: str, what: str) -> None:
        """Raises InputError where on_bad is "error" and something is wrong; else one warning a reason."""
        if on_bad not in ON_BAD:
            raise InputError(f"on_bad is {on_bad!r}; allowed: {', '.join(ON_BAD)}.")
        wrong = [self.line(reason) for reason in self.counts if reason not in HARMLESS]
        if wrong and on_bad == "error":
            raise InputError(
                f"{what}: " + "; ".join(wrong) + ". Mend them, or set on_bad=skip (they are left out and counted)."
            )
        for reason in self.counts:
            log.warning("%s: %s; they are left out.", what, self.line(reason))


class BadEntry(ValueError):
    """One entry of a list that cannot be used; says why, not where."""

    def __init__(self, message: str, reason: str = BAD_ENTRY) -> None:
        super().__init__(message)
        self.reason = reason


def entry_field(entry: Any, name: str, kind: type) -> Any:
    """The field of a JSON object; raises BadEntry where it is missing or of another type."""
    if not isinstance(entry, dict):
        raise BadEntry(f"expected an object, got {type(entry).__name__}")
    if name not in entry:
        raise BadEntry(f"the field `{name}` is missing")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadEntry(f"`{name}` is {type(value).__name__} {str(value)[:60]!r}; it must be {kind.__name__}")
    return value
