"""What is wrong in files of data, counted by reason; and which of their fields nobody reads."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from mmadapter.errors import InputError, described

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


@dataclass
class UnusedFields:
    """Fields of items that nobody reads: how many items have each, the first of them, and what it may be a slip for."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, where: str, read: Collection[str]) -> None:
        """Counts a field of one item; `read`: the fields that are read there. `messages[].name`: of a turn."""
        self.counts[name] += 1
        if name not in self.first:
            near = get_close_matches(name.rpartition(".")[2].strip().lower(), sorted(read), n=1, cutoff=0.75)
            self.first[name] = f"the first: {where}" + (f"; did you mean `{near[0]}`?" if near else "")

    def note(self, entry: Any, where: str, read: Collection[str], known: Collection[str] = ()) -> None:
        """Counts every field of an entry that says something and is not read; those of the published files (`known`)
        are no slips.
        """
        if isinstance(entry, Mapping) and not entry.keys() <= {*read, *known}:
            for name, value in entry.items():
                if name not in read and name not in known and not is_nothing(value):
                    self.add(name, where, read)

    def notice(self, file: object) -> list[str]:
        """One line that names them all; none where there is none."""
        named = [f"`{name}` ({count:,} items, {self.first[name]})" for name, count in self.counts.items()]
        return [f"{file}: these fields are not used: {', '.join(named)}."] if named else []


class BadEntry(ValueError):
    """One entry of a file that cannot be used; says why, not where."""

    def __init__(self, message: str, reason: str = BAD_ENTRY) -> None:
        super().__init__(message)
        self.reason = reason


def is_nothing(value: Any) -> bool:
    """Whether a field says nothing: null, NaN (an empty cell of a table), empty or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {}, ())


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
