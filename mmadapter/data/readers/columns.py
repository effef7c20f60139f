"""Items in columns: question and answer, multiple choice, captions of pictures; and what people call their columns."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from mmadapter.data.readers.defects import BadEntry, is_nothing
from mmadapter.data.readers.items import (
    EMPTY_OUTPUT,
    EMPTY_TURN,
    HISTORY,
    Item,
    ItemLayout,
    earlier_turns,
    history_of,
    picture_names,
    text_field,
    turn_pairs,
)
from mmadapter.data.settings import ColumnNames
from mmadapter.data.templates import CAPTION_INSTRUCTION, LETTERS, Turn, scienceqa_answer, scienceqa_options
from mmadapter.errors import InputError, described

# What a column may be called; written in any case, with blanks, hyphens or underscores.
USUAL = {
    "question": ("question", "prompt", "query", "instruction", "user", "human", "problem", "问题", "提问"),
    "answer": ("answer", "answers", "completion", "response", "output", "target", "assistant", "回答", "答案"),
    "context": ("input", "context", "passage", "hint"),
    "image": ("image", "images", "image_path", "image_file", "file_name", "filename", "img", "img_path", "picture"),
    "caption": ("caption", "captions", "text", "description"),
    "choices": ("choices", "options"),
    "system": ("system", "system_prompt"),
    "split": ("split",),
}
RIGHT_CHOICE = (*USUAL["answer"], "answer_key", "answerkey", "label", "correct", "correct_answer", "correct_option")


class Columns:
    """Says which column of a file holds what. Raises InputError where a column that the user names is not there."""

    def __init__(self, there: Collection[str], given: ColumnNames, what: str) -> None:
        self.there, self.what = list(there), what
        self.are_named = any(name is not None for name in asdict(given).values())
        self.found: dict[str, list[str]] = {}
        plain = {name: re.sub(r"[\s\-]+", "_", name.strip().lower()) for name in there}
        lettered = [name for name in there if len(name) == 1 and name in LETTERS]
        for role, name in asdict(given).items():
            if name is not None and name not in plain:
                listed = ", ".join(map(str, there))
                raise InputError(f"{what}: columns.{role}={name}, but there is no such field; there are: {listed}.")
            usual = [one for one in there if plain[one] in USUAL[role]]
            self.found[role] = usual if name is None else [name]
        if not self.found["choices"] and lettered[:2] == ["A", "B"]:
            self.found["choices"] = lettered
        if self.found["choices"] and given.answer is None:
            self.found["answer"] = [one for one in there if plain[one] in RIGHT_CHOICE]
        # A column that the user names for one role is not taken for another. Without a question, the input is one.
        taken = {name for name in asdict(given).values() if name is not None}
        for role, name in asdict(given).items():
            if name is None:
                self.found[role] = [one for one in self.found[role] if one not in taken]
        if not self.found["question"] and self.found["answer"] and len(self.found["context"]) == 1:
            self.found["question"], self.found["context"] = self.found["context"], []
        if not self.found["answer"] and not self.found["caption"] and self.found["image"]:
            self.found["caption"] = self.found["question"]

    def layout(self) -> str | None:
        """multiple_choice, question_answer or captions; None where the columns are none of these."""
        has = {role: bool(names) for role, names in self.found.items()}
        if has["question"] and has["answer"]:
            return "multiple_choice" if has["choices"] else "question_answer"
        return "captions" if has["image"] and has["caption"] else None

    def one(self, role: str, needed: bool = True) -> str | None:
        """The column of a role. Raises InputError where several could be it, or none that is needed is there."""
        names = self.found[role]
        if len(names) > 1:
            raise InputError(
                f"{self.what}: the {role} could be {' or '.join(f'`{name}`' for name in names)}. "
                f"Say which: columns.{role}={names[0]}"
            )
        if needed and not names:
            raise InputError(
                f"{self.what}: no field holds the {role}; there are: {', '.join(map(str, self.there))}. "
                f"Say which: columns.{role}=NAME"
            )
        return names[0] if names else None


def column_layout(name: str, columns: Columns) -> ItemLayout:
    """How items of such columns are read. Raises InputError where a column is missing or several could be it."""
    image, system = columns.one("image", needed=name == "captions"), columns.one("system", needed=False)
    pictures = () if image is None else (image,)
    if name == "captions":
        caption = columns.one("caption")
        assert caption is not None

        def parse_caption(entry: Any) -> Item:
            return _captioned(entry, caption, pictures)

        return ItemLayout("captioned pictures", frozenset((caption, *pictures)), parse_caption)

    question, answer = columns.one("question"), columns.one("answer")
    context = columns.one("context", needed=False)
    assert question is not None and answer is not None
    # ms-swift's name for earlier turns, unless the user names this column for something else
    history = HISTORY in columns.there and HISTORY not in {question, answer, context, system, *pictures}
    fields = {question, answer, *pictures} | {one for one in (context, system) if one is not None}
    fields |= {HISTORY} if history else set()

    def asked_of(entry: Mapping[str, Any]) -> tuple[tuple[Turn, ...], str, str, str | None, str | None]:
        """The earlier turns, the question, its context, the system text and the picture's name."""
        said = [*(history_of(entry) if history else ()), ("human", text_field(entry, question))]
        told = "" if system is None else text_field(entry, system)
        turns, told_system, picture = turn_pairs(said, told, picture_names(entry, pictures), text_marks=True)
        if not all(text.strip() for _, text in turns):
            raise BadEntry(EMPTY_TURN, EMPTY_TURN)
        about = "" if context is None else text_field(entry, context)
        return earlier_turns(turns), turns[-1][1], about, told_system, picture

    if name == "multiple_choice":
        listed = columns.found["choices"]
        if not listed:
            columns.one("choices")

        def parse_choice(entry: Any) -> Item:
            earlier, asked, about, told, picture = asked_of(_object(entry))
            choices, labels = choices_of(entry, listed)
            right = right_choice(entry.get(answer), answer, choices, labels)
            text = f"{asked}\nOptions: {scienceqa_options(choices)}"
            turn = Turn(text, scienceqa_answer(right), about)
            return Item((*earlier, turn), told, picture, choices=tuple(choices), choice=right)

        return ItemLayout("multiple choice", frozenset(fields.union(listed)), parse_choice)

    def parse_answer(entry: Any) -> Item:
        earlier, asked, about, told, picture = asked_of(_object(entry))
        answers = texts_of(entry, answer)
        if not answers:
            raise BadEntry(EMPTY_OUTPUT, EMPTY_OUTPUT)
        several = answers if len(answers) > 1 else ()
        return Item((*earlier, Turn(asked, answers[0], about)), told, picture, answers=tuple(several))

    return ItemLayout("questions and answers", frozenset(fields), parse_answer)


def _object(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise BadEntry(f"expected an object, got {described(entry)}")
    return entry


def _captioned(entry: Any, caption: str, pictures: tuple[str, ...]) -> Item:
    """A picture with its caption, or captions; whitespace is collapsed, as in all captions."""
    names = picture_names(_object(entry), pictures)
    if len(names) != 1:
        raise BadEntry(f"it names {len(names)} pictures; a caption belongs to one")
    texts = [" ".join(text.split()) for text in texts_of(entry, caption)]
    if not texts:
        raise BadEntry(EMPTY_OUTPUT, EMPTY_OUTPUT)
    return captioned_item(names[0], texts)


def captioned_item(image: str, captions: list[str]) -> Item:
    """A picture that is to be described, with all its captions."""
    return Item((Turn(CAPTION_INSTRUCTION, captions[0]),), image=image, answers=tuple(captions))


def texts_of(entry: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a field, each once: a text, a list of them, or SQuAD's {text: [...]}. Raises BadEntry."""
    value = entry.get(name)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list):
        text = text_field(entry, name)
        return [text] if text.strip() else []
    texts = [text_field({name: one}, name) for one in value]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def choices_of(entry: Mapping[str, Any], listed: list[str]) -> tuple[list[str], list[str]]:
    """The choices, and their labels where the item has some (as ARC does).

    Choices are a list of texts, an object {label: text} or {text: [...], label: [...]}, the same as JSON in a cell of a
    table, or a column for each (A, B, C, ...). Raises BadEntry.
    """
    if len(listed) > 1:
        found = {name: text_field(entry, name) for name in listed}
        labels = [name for name, text in found.items() if text]
        return _counted([found[name] for name in labels]), labels
    value = entry.get(listed[0])
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            told = f"`{listed[0]}` is {described(value)}; write it as JSON"
            raise BadEntry(f'{told}: ["first", "second"]') from error
    labels = []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = [str(one) for one in value.get("label") or ()]
        value = value["text"]
    elif isinstance(value, dict):
        labels, value = [str(one) for one in value], list(value.values())
    if not isinstance(value, list):
        raise BadEntry(f"`{listed[0]}` is {described(value)}; it must be a list of texts")
    return _counted([text_field({listed[0]: one}, listed[0]) for one in value]), labels


def _counted(choices: list[str]) -> list[str]:
    """The same choices. Raises BadEntry where they are too few, or more than there are letters."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadEntry(f"it has {len(choices)} choices; allowed are 2 to {len(LETTERS)}")
    return choices


def right_choice(value: Any, name: str, choices: list[str], labels: list[str]) -> int:
    """The index of the choice that an answer names, as a number (from 0), a letter, a label or the choice's text.

    Raises BadEntry where it names none, or two.
    """
    allowed = (
        f"an index from 0 to {len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]}, or a choice's text"
    )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or is_nothing(value):
        raise BadEntry(f"`{name}` is {described(value)}; it must be {allowed}")
    text = str(value).strip()
    if labels and text in labels and len(labels) == len(choices):
        return labels.index(text)
    meant = {place for place, choice in enumerate(choices) if choice.strip() == text}
    letter = re.fullmatch(r"\(?([A-Za-z])[).:]?", text)
    if letter and letter[1].upper() in LETTERS[: len(choices)]:
        meant.add(LETTERS.index(letter[1].upper()))
    if isinstance(value, int) or (not meant and re.fullmatch(r"\d+", text)):
        meant = {int(value)} if 0 <= int(value) < len(choices) else set()
    if len(meant) != 1:
        names = "none of the choices" if not meant else "more than one of the choices"
        raise BadEntry(f"`{name}` is {described(value)}, which names {names}; it must be {allowed}")
    return meant.pop()
