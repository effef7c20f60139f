"""One item of an instruction file, of either layout, as turns: {instruction, input, output} or {conversations}.

What is wrong with an item is either worth an error (`InputError`, without the item's place) or a known weakness of
public files, for which the item is left out (`Dropped`, with a reason that is counted).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmadapter.errors import InputError

FIELDS = "instruction, input, output"
MARKER = "<image>"
ROLES = ("human", "gpt")
EMPTY_OUTPUT = "empty output"
OTHER_ROLE = "another role than human and gpt"
GPT_FIRST = "starts with gpt"
NOT_IN_TURN = "human and gpt do not alternate"
EMPTY_TURN = "empty turn"
NO_ANSWER = "no answered turn"


class Dropped(Exception):
    """An item that is left out; the message is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class Item:
    """Answered turns of (user, assistant), the first one with an input (`context`) or a picture where there is one."""

    turns: tuple[tuple[str, str], ...]
    context: str = ""
    image: str | None = None
    open_end: bool = False
    """Whether a last human turn without an answer was left out."""

    @property
    def key(self) -> tuple[str, str]:
        """What decides on which side of a split the item stands: its picture, else its first question and input."""
        return ("image", self.image) if self.image else (self.turns[0][0], self.context)


def instruction_item(raw: Any) -> Item:
    """An item of Alpaca's layout (GPT-4-LLM's as well); an empty output is `Dropped`."""
    entry = _object(raw, f"an object with {FIELDS}")
    found = {"instruction": entry.get("instruction"), "input": entry.get("input", ""), "output": entry.get("output")}
    for name, value in found.items():
        if not isinstance(value, str):
            raise InputError(f"`{name}` is {_got(entry, name)}; it must be text.")
    if not found["instruction"].strip():
        raise InputError("`instruction` is empty. Give it a text or take the item out.")
    if not found["output"].strip():
        raise Dropped(EMPTY_OUTPUT)
    return Item(((found["instruction"], found["output"]),), found["input"])


def dialog_item(raw: Any) -> Item:
    """An item of LLaVA's and ShareGPT's layout, {id, image, conversations: [{from, value}]}; `image` may be missing.

    `<image>` stands once, first or last in the first human turn, and is taken out. Elsewhere, twice or without `image`
    it is an error. Deviates: the official V2 code leaves it in the text.
    """
    entry = _object(raw, "an object with conversations")
    image = entry.get("image")
    if image is not None and (not isinstance(image, str) or not image.strip()):
        raise InputError(f"`image` is {_got(entry, 'image')}; it must be a file name (or be left out).")
    said = _without_marker(_said(entry), image)
    for role, _ in said:
        if role not in ROLES:
            raise Dropped(OTHER_ROLE)
    if said and said[0][0] == "gpt":
        raise Dropped(GPT_FIRST)
    if any(role != ROLES[place % 2] for place, (role, _) in enumerate(said)):
        raise Dropped(NOT_IN_TURN)
    if any(not text.strip() for _, text in said):
        raise Dropped(EMPTY_TURN)
    if len(said) < 2:
        raise Dropped(NO_ANSWER)
    answered = zip(said[0::2], said[1::2], strict=False)
    return Item(tuple((asked, answer) for (_, asked), (_, answer) in answered), "", image, len(said) % 2 == 1)


def mixed_item(raw: Any) -> Item:
    """An item of the official V2 files, told apart by its field `conversations`."""
    is_dialog = isinstance(raw, Mapping) and "conversations" in raw
    return dialog_item(raw) if is_dialog else instruction_item(raw)


def _said(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of every turn, as the file has them."""
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        raise InputError(f"`conversations` is {_got(entry, 'conversations')}; it must be a list of {{from, value}}.")
    said = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise InputError(f"`conversations[{number}]` is {type(turn).__name__}; it must be {{from, value}}.")
        for name in ("from", "value"):
            if not isinstance(turn.get(name), str):
                raise InputError(f"`conversations[{number}].{name}` is {_got(turn, name)}; it must be text.")
        said.append((turn["from"], turn["value"]))
    return said


def _without_marker(said: list[tuple[str, str]], image: str | None) -> list[tuple[str, str]]:
    marks = sum(text.count(MARKER) for _, text in said)
    if marks == 0:
        return said
    if marks > 1:
        raise InputError(f"{MARKER} stands {marks} times; one picture an item is what an adapter can see.")
    role, first = said[0]
    bare = first.strip()
    if role != "human" or not (bare.startswith(MARKER) or bare.endswith(MARKER)):
        raise InputError(f"{MARKER} must stand first or last in the first human turn.")
    if image is None:
        raise InputError(f"{MARKER} stands in the text, but the item names no `image`.")
    return [(role, bare.replace(MARKER, "").strip()), *said[1:]]


def _object(raw: Any, wanted: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise InputError(f"expected {wanted}, got {type(raw).__name__}.")
    return raw


def _got(entry: Mapping[str, Any], name: str) -> str:
    return f"{type(entry[name]).__name__} {str(entry[name])[:60]!r}" if name in entry else "missing"
