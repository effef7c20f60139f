"""Items of instructions and dialogs: one class for all, and a layout for each way in which people write them down.

A layout lists the fields that it reads. Every other field is either refused, because it says something that an adapter
cannot learn (NOT_LEARNED), or counted and named (`parsed_items`). Nothing is silently ignored.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmadapter.data.readers.defects import BAD_ENTRY, BadEntry, Defects, UnusedFields, entry_field, is_nothing
from mmadapter.data.readers.pictures import OUTSIDE, is_outside
from mmadapter.data.templates import CAPTION_INSTRUCTION, Turn
from mmadapter.errors import described

log = logging.getLogger(__name__)
MARKER = "<image>"
ROLES = ("human", "gpt")
SYSTEM = "system"
HISTORY = "history"
ROLE_NAMES = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model"), "gpt"),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
BAD_ITEM = "bad items"
EMPTY_OUTPUT = "empty output"
OTHER_ROLE = "another role than human and gpt"
GPT_FIRST = "starts with gpt"
NOT_IN_TURN = "human and gpt do not alternate"
EMPTY_TURN = "empty turn"
NO_ANSWER = "no answered turn"
LATE_SYSTEM = "a system text behind the first turn"
WEAK = (EMPTY_OUTPUT, OTHER_ROLE, GPT_FIRST, NOT_IN_TURN, EMPTY_TURN, NO_ANSWER, LATE_SYSTEM)
SEVERAL_PICTURES = "items with several pictures"
PLACE_OF_PICTURE = "items whose picture stands in a later turn or within a text"
NO_FILE = "pictures that are no file"
WEIGHTS = ("weight", "weights", "loss")
# Fields that say something about the training itself: they must not be silently ignored.
NOT_LEARNED = {
    **dict.fromkeys(("video", "videos"), "moving pictures"),
    **dict.fromkeys(("audio", "audios"), "sound"),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call", "tool_call_id"), "calls of functions"),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages"), "preferences between answers"),
    **dict.fromkeys(("kto_tag", "reward"), "judgements of answers"),
    **dict.fromkeys((*WEIGHTS, "mask"), "weights of items or turns"),
    **dict.fromkeys(("objects", "bbox"), "places in the picture"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """Answered turns, with a system text and a picture where there are some; the picture belongs to the first turn."""

    turns: tuple[Turn, ...]
    system: str | None = None
    image: str | None = None
    open_end: bool = False
    """Whether the last turn was a question without an answer, which was left out."""
    answers: tuple[str, ...] = ()
    """All right answers to the last turn where there are several (captions of a picture); empty: the turn's own."""
    choices: tuple[str, ...] = ()
    choice: int | None = None
    """The index of the right one of `choices`."""

    @property
    def key(self) -> tuple[str, str]:
        """Items with equal keys go into the same split: the picture, or without one the first question and input."""
        return ("image", self.image) if self.image else (self.turns[0].asked, self.turns[0].context)

    @property
    def whole(self) -> str:
        """The whole item as one text, by which equal items are found."""
        return json.dumps([self.system, self.image, [(one.asked, one.answer, one.context) for one in self.turns]])

    @property
    def is_caption(self) -> bool:
        """Whether the item only asks for a description of the picture."""
        return self.turns[-1].asked == CAPTION_INSTRUCTION

    @property
    def references(self) -> list[str]:
        """Every right answer to the last turn."""
        return list(self.answers) or [self.turns[-1].answer or ""]


@dataclass(frozen=True, slots=True)
class ItemLayout:
    """One way to write items down."""

    title: str
    """as messages call it"""
    fields: frozenset[str]
    """what `parse` reads of an item"""
    parse: Callable[[Any], Item]
    turns: str | None = None
    """the field that lists the turns, of which each is an object again"""


# Pieces that several layouts have.


def text_field(entry: Mapping[str, Any], name: str) -> str:
    """A text that may be missing or null ("" then); numbers are written as they stand. Raises BadEntry otherwise."""
    value = entry.get(name)
    if is_nothing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadEntry(f"`{name}` is {described(value)}; it must be text")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadEntry(f"`{name}` is a number that is too large to be read; write it as text")
    return value if isinstance(value, str) else json.dumps(value)


def picture_names(entry: Mapping[str, Any], fields: Sequence[str] = ("image", "images")) -> list[str]:
    """The pictures that an item names, as a text, a list of texts or of objects with `path`. Raises BadEntry."""
    names: list[str] = []
    for name in fields:
        value = entry.get(name)
        for one in [] if is_nothing(value) else value if isinstance(value, list) else [value]:
            names.append(_picture_name(one, name))
    return names


def _picture_name(value: Any, name: str) -> str:
    if isinstance(value, dict):
        nested = value.get("path") or value.get("url") or value.get("image")
        if value.get("bytes") is not None:
            raise BadEntry(f"`{name}` holds the picture's own bytes; save it as a file and give its name", NO_FILE)
        return _picture_name(nested, name)
    if not isinstance(value, str) or not value.strip():
        raise BadEntry(f"`{name}` is {described(value)}; it must be a file name (or be left out)")
    if value.startswith(("http://", "https://", "data:")):
        told = "picture's own bytes" if value.startswith("data:") else f"web address {value[:60]}"
        raise BadEntry(f"`{name}` is the {told}; save it as a file and give its name", NO_FILE)
    return value.strip().removeprefix("file://")


def turn_pairs(
    said: Sequence[tuple[str, str]], system: str, images: Sequence[str], text_marks: bool = False
) -> tuple[list[tuple[str, str]], str | None, str | None]:
    """(role, text) of each turn without the mark `<image>`, the system text, the picture's name. Raises BadEntry.

    The mark may stand once, first or last in the first human turn. With `text_marks` it is ordinary text in an item
    without a picture, as in files that are not about pictures.
    """
    turns = list(said)
    if turns and turns[0][0] == SYSTEM:
        own = turns.pop(0)[1]
        if system.strip() and own.strip() and own.strip() != system.strip():
            raise BadEntry("it has two system texts, the field `system` and the first turn; keep one")
        system = system if system.strip() else own
    if len(images) > 1:
        raise BadEntry(
            f"it names {len(images)} pictures; one picture an item is what an adapter can see", SEVERAL_PICTURES
        )
    image = images[0] if images else None
    marks = 0 if text_marks and image is None else sum(text.count(MARKER) for _, text in turns)
    if marks > 1:
        told = f"{MARKER} stands {marks} times; one picture an item is what an adapter can see"
        raise BadEntry(told, SEVERAL_PICTURES)
    if marks:
        role, bare = turns[0][0], turns[0][1].strip()
        if role != "human" or not (bare.startswith(MARKER) or bare.endswith(MARKER)):
            raise BadEntry(f"{MARKER} must stand first or last in the first human turn", PLACE_OF_PICTURE)
        if image is None:
            raise BadEntry(f"{MARKER} stands in the text, but the item names no `image`")
        turns[0] = (role, bare.replace(MARKER, "").strip())
    return turns, system.strip() or None, image


def dialog(said: Sequence[tuple[str, str]], system: str, images: Sequence[str]) -> Item:
    """An item of (role, text) turns. Raises BadEntry; its reason is one of WEAK where such items are left out."""
    turns, system_text, image = turn_pairs(said, system, images)
    weakness = None
    if any(role == SYSTEM for role, _ in turns):
        weakness = LATE_SYSTEM
    elif any(role not in ROLES for role, _ in turns):
        weakness = OTHER_ROLE
    elif turns and turns[0][0] == "gpt":
        weakness = GPT_FIRST
    elif any(role != ROLES[place % 2] for place, (role, _) in enumerate(turns)):
        weakness = NOT_IN_TURN
    elif any(not text.strip() for _, text in turns):
        weakness = EMPTY_TURN
    elif len(turns) < 2:
        weakness = NO_ANSWER
    if weakness is not None:
        raise BadEntry(weakness, weakness)
    answered = tuple(Turn(asked, answer) for (_, asked), (_, answer) in zip(turns[0::2], turns[1::2], strict=False))
    return Item(answered, system_text, image, open_end=len(turns) % 2 == 1)


# The layouts.


def instruction_item(entry: Any) -> Item:
    """An item of Alpaca's layout, {instruction, input, output, system, history: [[asked, answer]], image}.

    `input`, `system`, `history` and `image` may be missing. Raises BadEntry, EMPTY_OUTPUT among its reasons.
    """
    asked, answer = entry_field(entry, "instruction", str), entry_field(entry, "output", str)
    context = "" if entry.get("input") is None else entry_field(entry, "input", str)
    images = picture_names(entry)
    before = history_of(entry)
    if not asked.strip() and context.strip() and before:
        asked, context = context, ""
    turns, system, image = turn_pairs([*before, ("human", asked)], text_field(entry, "system"), images, text_marks=True)
    if not turns[-1][1].strip():
        raise BadEntry("`instruction` is empty. Give it a text or take the item out", BAD_ITEM)
    if not answer.strip():
        raise BadEntry(EMPTY_OUTPUT, EMPTY_OUTPUT)
    if any(not text.strip() for _, text in turns):
        raise BadEntry(EMPTY_TURN, EMPTY_TURN)
    return Item((*earlier_turns(turns), Turn(turns[-1][1], answer, context)), system, image)


def history_of(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of the earlier turns in the field `history`, [[question, answer], ...]. Raises BadEntry."""
    history = entry.get(HISTORY)
    before: list[tuple[str, str]] = []
    if not is_nothing(history):
        for number, pair in enumerate(history if isinstance(history, list) else [history]):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise BadEntry(f"history[{number}] is {described(pair)}; it must be [question, answer]")
            before += zip(ROLES, pair, strict=True)
    return before


def earlier_turns(turns: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    """The answered turns in front of the last question."""
    return tuple(Turn(q, a) for (_, q), (_, a) in zip(turns[0:-1:2], turns[1:-1:2], strict=True))


def dialog_item(entry: Any) -> Item:
    """An item of LLaVA's and ShareGPT's layout, {id, system, image, conversations: [{from, value}]}.

    `system` and `image` may be missing; a system text may be the first turn as well. `<image>` stands once, first or
    last in the first human turn, and is taken out. Elsewhere, twice or without `image` it is an error. Deviates: the
    official V2 code leaves it in the text. Raises BadEntry, as `dialog` does.
    """
    said = turns_of(entry)
    return dialog(said, text_field(entry, "system"), picture_names(entry))


def turns_of(entry: Any) -> list[tuple[str, str]]:
    """(role, text) of every turn of a dialog; raises BadEntry where it is no dialog.

    A turn is {from, value}, or {role, content}; roles of one meaning get one name (ROLE_NAMES).
    """
    said = []
    for number, turn in enumerate(entry_field(entry, "conversations", list)):
        names = ("role", "content") if isinstance(turn, dict) and "content" in turn else ("from", "value")
        try:
            role, text = entry_field(turn, names[0], str), entry_field(turn, names[1], str)
        except BadEntry as error:
            raise BadEntry(f"conversations[{number}]: {error}") from error
        said.append((ROLE_NAMES.get(role.strip().lower(), role), text))
    return said


def messages_item(entry: Any) -> Item:
    """An item as OpenAI's interface has it, {messages: [{role, content}], images, system}.

    `content` is a text with `<image>` in it, or a list of parts, {type: text, text} and {type: image}, which may name
    the picture. Raises BadEntry.
    """
    said, images = [], picture_names(entry)
    for number, turn in enumerate(entry_field(entry, "messages", list)):
        try:
            role = entry_field(turn, "role", str)
            content = turn.get("content")
            if isinstance(content, list):
                texts = [_part(part, images) for part in content]
                content = "\n".join(texts)
            elif not isinstance(content, str):
                raise BadEntry(f"`content` is {described(content)}; it must be text, or a list of parts")
        except BadEntry as error:
            raise BadEntry(f"messages[{number}]: {error}", error.reason) from error
        said.append((ROLE_NAMES.get(role.strip().lower(), role), content))
    return dialog(said, text_field(entry, "system"), images)


def _part(part: Any, images: list[str]) -> str:
    """The text of one part of a message. A picture gives the mark `<image>`; its name is appended to `images`."""
    kind = entry_field(part, "type", str)
    if kind == "text":
        return str(entry_field(part, "text", str))
    if kind in ("image", "image_url"):
        named = next((part[name] for name in ("image", "image_url", "path", "url") if part.get(name) is not None), None)
        if named is not None:
            images.append(_picture_name(named, kind))
        return MARKER
    raise BadEntry(f"a part is of type {kind!r}; allowed are text and image")


ALPACA = ItemLayout(
    "Alpaca instructions",
    frozenset(("instruction", "input", "output", "system", HISTORY, "image", "images")),
    instruction_item,
)
DIALOGS = ItemLayout("dialogs", frozenset(("conversations", "system", "image", "images")), dialog_item, "conversations")
MESSAGES = ItemLayout(
    "OpenAI messages", frozenset(("messages", "system", "image", "images")), messages_item, "messages"
)
TURN_FIELDS = frozenset(("from", "value", "role", "content"))


def any_item(entry: Any) -> Item:
    """A dialog where the item has `conversations`, else an instruction."""
    return dialog_item(entry) if isinstance(entry, dict) and "conversations" in entry else instruction_item(entry)


EITHER = ItemLayout("instructions and dialogs", ALPACA.fields | DIALOGS.fields, any_item, "conversations")


# Files.


@dataclass(frozen=True, slots=True)
class ReadItem:
    """One usable item and where it stands."""

    file: Path
    number: int
    id: Any
    item: Item
    split: str | None = None
    """what the file says of it"""
    place: str | None = None
    """file and place for messages, where it is not the number in the file"""

    @property
    def where(self) -> str:
        return self.place or f"{self.file.name}, item {self.number}"


@dataclass
class InstructionFile:
    """What a file of items holds, what was wrong, and which fields are not used."""

    file: Path
    items: list[ReadItem] = field(default_factory=list)
    defects: Defects = field(default_factory=lambda: Defects(harmless=WEAK))
    unused: UnusedFields = field(default_factory=UnusedFields)

    def leave_out_outside(self, roots: Sequence[Path]) -> None:
        """Counts items whose picture lies outside of all `roots` as defects."""
        kept = []
        for one in self.items:
            if one.item.image is not None and is_outside(one.item.image, roots):
                self.defects.add(OUTSIDE, f"{one.where}: {one.item.image[:200]!r}")
            else:
                kept.append(one)
        self.items = kept

    def notices(self) -> Iterator[str]:
        """What a user should know of the usable items."""
        if open_ends := sum(one.item.open_end for one in self.items):
            yield f"{self.file}: {open_ends} dialogs end with a question; that last turn is left out."
        yield from self.unused.notice(self.file)


def parsed_items(
    file: Path, raw: Sequence[Any], layout: ItemLayout, ignore: Collection[str] = (), also: Collection[str] = ("id",)
) -> InstructionFile:
    """The usable ones among the raw items of a file; the others are counted by reason.

    The caller reads the fields in `also`; the user says that those in `ignore` may be left out.
    """
    found = InstructionFile(file)
    read = layout.fields.union(also)
    for number, entry in enumerate(raw):
        where = f"{file.name}, item {number}"
        try:
            if not isinstance(entry, dict):
                raise BadEntry(f"expected an object, got {described(entry)}")
            others = unread_fields(entry, layout, read, ignore)
            item = layout.parse(entry)
            found.items.append(ReadItem(file, number, entry.get("id", number), item))
            for name in others:
                found.unused.add(name, f"item {number}", read | TURN_FIELDS)
        except BadEntry as error:
            if error.reason in WEAK:
                found.defects.add(error.reason, where)
            else:
                reason = BAD_ITEM if error.reason == BAD_ENTRY else error.reason
                found.defects.add(reason, f"{where}: {error}")
    return found


def unread_fields(entry: Any, layout: ItemLayout, read: Collection[str], ignore: Collection[str]) -> list[str]:
    """The fields of an item that `layout` has no use for; raises BadEntry for one of NOT_LEARNED that says something.

    A turn's own field is named with its list: `messages[].weight`.
    """
    if not isinstance(entry, dict):
        return []
    others = [(name, name, entry[name]) for name in entry if name not in read]
    listed = entry.get(layout.turns) if layout.turns is not None else None
    for turn in listed if isinstance(listed, list) else ():
        if isinstance(turn, dict) and not turn.keys() <= TURN_FIELDS:
            others += [(f"{layout.turns}[].{name}", name, turn[name]) for name in turn if name not in TURN_FIELDS]
    told: dict[str, None] = {}
    for full, name, value in others:
        if full in ignore or name in ignore or is_nothing(value) or value in ("[]", "{}"):
            continue
        meaning = NOT_LEARNED.get(name)
        if name in WEIGHTS and value == 1:  # what every item and turn weighs
            meaning = None
        elif name == "label" and isinstance(value, bool):  # of KTO's layout: whether the answer is a good one
            meaning = NOT_LEARNED["kto_tag"]
        if meaning is not None:
            raise BadEntry(
                f"`{full}` is {described(value)}; take it out, or set ignore=[{name}] to go without it",
                f"items with `{full}` ({meaning} cannot be learned)",
            )
        told[full] = None
    return list(told)
