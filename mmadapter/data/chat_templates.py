"""The host's own chat template as segments: rendered with marks in place of the contents, and split at the marks.

The template's own pieces may hold control tokens, contents may not. The prompt of generation is what the template puts
in front of an answer in a dialog that is learned, so the two cannot differ.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from mmadapter.data.samples import ANSWER, BEGIN, END, FIXED, INSTRUCTION, TEMPLATE, Segment
from mmadapter.errors import InputError

THINKING_ENDS = "</think>"
# Templates that write today's date get this one: or the same data would be other data tomorrow.
DATE = datetime.date(2024, 7, 26)
_WITHOUT = "Name another one in place of the host's own: template=alpaca"
# What is put around a mark, and what is left of it -> the characters that the template takes away, as `str.strip` takes
# them ("": none; None: all white space, a full-width blank too).
_PADDED_LEFT, _PADDED_RIGHT = "\n \n", "\n\t\n"
_LEFT = {_PADDED_LEFT: "", " \n": "\n", "": None}
_RIGHT = {_PADDED_RIGHT: "", "\n\t": "\n", "": None}


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokenizer's control tokens, longer ones first."""
    added = [str(one) for one in getattr(tokenizer, "added_tokens_decoder", {}).values() if one.special]
    return tuple(sorted({*map(str, tokenizer.all_special_tokens), *added}, key=lambda one: (-len(one), one)))


def _own_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that are one token wherever they stand in a template, longer ones first: control tokens, and others that
    were added to the vocabulary (some models' <|im_end|> is no control token)."""
    added = [str(one) for one in getattr(tokenizer, "added_tokens_decoder", {}).values() if str(one).strip()]
    return tuple(sorted({*control_tokens(tokenizer), *added}, key=lambda one: (-len(one), one)))


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template; None is no tokenizer."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_segments(
    turns: Sequence[tuple[str, str, str | None]], system: str | None, tokenizer: Any
) -> tuple[Segment, ...]:
    """Turns of (user, input, assistant) in the tokenizer's chat template; the last assistant text may be None.

    `system` None or "": no such text, so the template puts its own where it has one. A template that cannot carry a
    system text gets it in front of the first user text, an empty line between, as Gemma 3's own does. So stands an
    input behind its instruction. What a template strips off contents is stripped; thinking blocks, which some leave out
    of earlier answers, are left out of all, as the prompt of generation closes an empty one. Raises InputError for a
    template that cannot be split.
    """
    frame = _frame(tokenizer, len(turns), bool(system))
    contents: list[list[Segment]] = [[Segment(system, FIXED)]] if system and frame.carries_system else []
    for number, (asked, context, answer) in enumerate(turns):
        # One segment, so that no token of it is split: cut is its end, and that is the input.
        user = [Segment(f"{asked}\n\n{context}" if context else asked, INSTRUCTION)]
        if system and not frame.carries_system and not number:
            user.insert(0, Segment(f"{system}\n\n", FIXED))
        contents.append(user)
        if answer is not None:
            if frame.drops_thinking and THINKING_ENDS in answer:
                answer = answer.split(THINKING_ENDS)[-1].lstrip("\n")
            contents.append([Segment(answer, ANSWER)])

    segments: list[Segment] = []
    for content, place in zip(contents, frame.places, strict=False):
        segments += place.before
        content[0] = Segment(place.blank + content[0].text.lstrip(place.strips_left), content[0].kind)
        content[-1] = Segment(content[-1].text.rstrip(place.strips_right) + place.blanks_behind, content[-1].kind)
        segments += content
    is_answered = len(contents) == len(frame.places)
    return (*segments, *(frame.behind if is_answered else frame.places[-1].before))


def end_token(tokenizer: Any) -> int | None:
    """The token that ends an answer in the tokenizer's chat template; None where there is none, or no such token."""
    if not has_chat_template(tokenizer):
        return None
    try:
        frame = _frame(tokenizer, 1, False)
    except InputError:  # who uses the template is told
        return None
    token = next((one for one in _own_tokens(tokenizer) if frame.end and frame.end.endswith(one)), None)
    return None if token is None else int(tokenizer.convert_tokens_to_ids(token))


def plain_turn_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Tokens with which the chat template marks turns, though the tokenizer does not call them control tokens.

    Those of thinking are none, as answers may hold them, nor is a word such as "user".
    """
    if not has_chat_template(tokenizer):
        return ()
    try:
        frame = _frame(tokenizer, 1, False)
    except InputError:  # who uses the template is told
        return ()
    pieces = [*(place.before for place in frame.places), frame.behind]
    text = "".join(segment.text for piece in pieces for segment in piece)
    others = {*control_tokens(tokenizer), "<think>", THINKING_ENDS}
    return tuple(one for one in _own_tokens(tokenizer) if one in text and one not in others and not one.isalnum())


def chat_template_digest(tokenizer: Any) -> str | None:
    """What tells one chat template from another; None where there is none."""
    if not has_chat_template(tokenizer):
        return None
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]


def drops_thinking(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template leaves thinking blocks of earlier answers out."""
    return has_chat_template(tokenizer) and _frame(tokenizer, 1, False).drops_thinking


@dataclass(frozen=True)
class _Place:
    """Where one content stands: what the template puts in front of it, and what it takes away from its ends."""

    before: tuple[Segment, ...]
    blank: str  # a blank in front belongs to the content: so its first word is one token
    blanks_behind: str  # nothing but these stands between the content and the next one
    strips_left: str | None  # characters, as `str.lstrip` takes them
    strips_right: str | None


@dataclass(frozen=True)
class _Frame:
    """What a template makes of dialogs of one shape."""

    places: tuple[_Place, ...]  # of the contents in their order
    behind: tuple[Segment, ...]  # the last answer
    end: str  # what ends an answer; "" where no token of its own does
    carries_system: bool
    drops_thinking: bool


_frames: WeakKeyDictionary[Any, dict[tuple[str, int, bool], _Frame]] = WeakKeyDictionary()
"""What was found so far, of each tokenizer: chat template (a program may change it), turns, system text -> frame."""


def _frame(tokenizer: Any, turns: int, system: bool) -> _Frame:
    """The frame of dialogs with so many turns, with or without a system text."""
    known, key = _frames.setdefault(tokenizer, {}), (str(tokenizer.chat_template), turns, system)
    if key not in known and system:
        try:
            known[key] = _split(tokenizer, turns, True)
        except InputError:  # it has no place for it, or not in front
            known[key] = _frame(tokenizer, turns, False)
    elif key not in known:
        known[key] = _split(tokenizer, turns, False)
    return known[key]


def _split(tokenizer: Any, turns: int, system: bool) -> _Frame:
    # A mark has small and capital letters, so that a template which changes them is seen.
    marks = [f"qzX{number:03d}xZq" for number in range(2 * turns + system)]
    pieces = _pieces(tokenizer, marks, marks, system)
    padded = _pieces(tokenizer, marks, [f"{_PADDED_LEFT}{mark}{_PADDED_RIGHT}" for mark in marks], system)

    # What it takes away from the ends of each content.
    lefts, rights = [], []
    for number, (bare, wide) in enumerate(zip(pieces, padded, strict=True)):
        ends = [
            (right, left)
            for right in (_RIGHT if number else [""])
            for left in (_LEFT if number < len(marks) else [""])
            if right + bare + left == wide
        ]
        if not ends:
            raise _unusable("it changes contents, and not only blanks around them")
        rights.append(_RIGHT[ends[0][0]])
        lefts.append(_LEFT[ends[0][1]])

    # The prompt of generation must be what stands in front of the last answer.
    prompt = "".join(piece + mark for piece, mark in zip(pieces, marks, strict=False)).removesuffix(marks[-1])
    told = _render(tokenizer, _messages(marks, system)[:-1], generation=True)
    if not prompt.startswith(told.rstrip(" ")):
        raise _unusable("its prompt for an answer is not what stands in front of an answer that it is shown")

    # What ends an answer: all up to the first token of the template's own behind the last one.
    controls = _own_tokens(tokenizer)
    found = re.search("|".join(map(re.escape, controls)), pieces[-1]) if controls else None
    end = pieces[-1][: found.end()] if found else ""

    # The pieces as segments, each with an answer's end where it stands behind one.
    places: list[_Place] = []
    behind: tuple[Segment, ...] = ()
    for number, piece in enumerate(pieces):
        segments: list[Segment] = []
        is_last = number == len(marks)
        if number > system and (number - system) % 2 == 0 and end:
            if not piece.startswith(end):
                raise _unusable("it does not end all answers alike")
            segments.append(Segment(end, END))
            piece = piece.removeprefix(end)
        if places and not segments and not is_last and not piece.strip():
            places[-1] = replace(places[-1], blanks_behind=piece)
            piece = ""
        blank = " " if piece.endswith(" ") and not is_last else ""
        piece = piece.removesuffix(blank)
        if piece or not number:
            segments.append(Segment(piece, TEMPLATE if number else BEGIN))
        if is_last:
            behind = tuple(segments)
        else:
            places.append(_Place(tuple(segments), blank, "", lefts[number], rights[number + 1]))
    return _Frame(tuple(places), behind, end, system, _drops_thinking(tokenizer, marks))


def _pieces(tokenizer: Any, marks: list[str], contents: list[str], system: bool) -> list[str]:
    """The template's own texts before, between and behind the marks. Raises InputError where it moves them."""
    text = _render(tokenizer, _messages(contents, system))
    found = re.findall("|".join(marks), text)
    if found != marks:
        raise _unusable("it leaves contents out, repeats them, or changes their letters or their order")
    return re.split("|".join(marks), text)


def _messages(contents: Sequence[str], system: bool) -> list[dict[str, str]]:
    roles = [*(["system"] if system else []), *("user" if n % 2 == 0 else "assistant" for n in range(len(contents)))]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def _render(tokenizer: Any, messages: list[dict[str, str]], generation: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=generation,
            enable_thinking=False,
            date_string=DATE.strftime("%d %b %Y"),
            strftime_now=DATE.strftime,
        )
    except Exception as error:  # what a template raises, and whatever its program runs into
        raise _unusable(f"it fails with {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def _drops_thinking(tokenizer: Any, marks: list[str]) -> bool:
    contents = ["user", f"<think>\n{marks[0]}\n{THINKING_ENDS}\n\nanswer", "user", "answer"]
    return marks[0] not in _render(tokenizer, _messages(contents, False))


def _unusable(why: str) -> InputError:
    return InputError(f"The chat template of the host's tokenizer cannot be used: {why}. {_WITHOUT}")
