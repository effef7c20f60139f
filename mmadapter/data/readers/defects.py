"""What is wrong in files of data, counted by reason; and how a value of a JSON file is described."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mmadapter.errors import InputError

log = logging.getLogger(__name__)
EXAMPLES = 5
BAD_ENTRY = "entries that cannot be read"


@dataclass
class Defects:
    """Items that cannot be used, by reason: how many, how many captions are lost with them, the first few places.

    Readers collect here and go on; `settle` decides what it means for a run, `data_prep` for a check of the files.
    """

    harmless: Collection[str] = ()
    """reasons that are no cause to stop a run: the items are left out, with a warning"""
    counts: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str, captions: int = 0) -> None:
        """Counts one item; `where` names file and place, and what was found there."""
        self.counts[reason] += 1
        self.captions[reason] += captions
        examples = self.first.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(where)

    def update(self, other: Defects) -> None:
        """Takes in what was found in another file."""
        self.counts.update(other.counts)
        self.captions.update(other.captions)
        for reason, examples in other.first.items():
            self.first[reason] = [*self.first.get(reason, []), *examples][:EXAMPLES]

    def line(self, reason: str) -> str:
        """The reason with its count and the first places."""
        return f"{reason}: {self.counts[reason]:,}, the first: {'; '.join(self.first[reason])}"

    def settle(self, what: str, remedy: str, skip: bool = False) -> None:
        """Raises InputError where something is wrong that is not harmless, unless `skip`; else warns of each reason."""
        wrong = [self.line(reason) for reason in self.counts if reason not in self.harmless]
        if wrong and not skip:
            raise InputError(f"{what}: {'; '.join(wrong)}. {remedy}")
        for reason in self.counts:
            log.warning("%s: %s; they are left out.", what, self.line(reason))


class BadEntry(ValueError):
    """One entry of a file that cannot be used; says why, not where."""

    def __init__(self, message: str, reason: str = BAD_ENTRY) -> None:
        super().__init__(message)
        self.reason = reason


def described(value: Any) -> str:
    """A value of a JSON file in a message: its type and its beginning."""
    return "null" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def entry_field(entry: Any, name: str, *kinds: type) -> Any:
    """The field of a JSON object; raises BadEntry where it is missing or of none of the types."""
    if not isinstance(entry, dict):
        raise BadEntry(f"expected an object, got {described(entry)}")
    if name not in entry:
        raise BadEntry(f"the field `{name}` is missing")
    value = entry[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise BadEntry(f"`{name}` is {described(value)}; it must be {allowed}")
    return value
