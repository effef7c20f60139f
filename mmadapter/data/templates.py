"""Prompt texts as segments: Alpaca's templates, dialogs, the caption instruction (V1, V2), ScienceQA's formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mmadapter.data.samples import ANSWER, CONTEXT, INSTRUCTION, TEMPLATE, Segment
from mmadapter.errors import InputError

Segments = tuple[Segment, ...]

ALPACA_WITH_INPUT = Segment(
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n",
    TEMPLATE,
)
ALPACA_WITHOUT_INPUT = Segment(
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n",
    TEMPLATE,
)
ALPACA_INPUT = Segment("\n\n### Input:\n", TEMPLATE)
ALPACA_RESPONSE = Segment("\n\n### Response:", TEMPLATE)
CAPTION_INSTRUCTION = "Generate caption of this image"
CAPTION_PLAIN = Segment(f"{CAPTION_INSTRUCTION} :", TEMPLATE)
CAPTION_TEMPLATES = ("alpaca", "plain")
ALPACA_NEXT = Segment("\n\n### Instruction:\n", TEMPLATE)
CHAT_HUMAN = Segment("\n### Human:", TEMPLATE)
CHAT_ASSISTANT = Segment("\n### Assistant:", TEMPLATE)
CHAT_SYSTEM = "This is a conversation. The assistant gives correct, complete and friendly answers."
DIALOG_TEMPLATES = ("alpaca", "chat")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked, perhaps with an input (`context`), and what is answered; None where it is to be answered."""

    asked: str
    answer: str | None
    context: str = ""


def alpaca_segments(instruction: str, context: str = "", answer: str | None = None) -> Segments:
    """Alpaca's template with input where there is one, else without; the answer stands directly behind the colon."""
    asked = Segment(instruction, INSTRUCTION)
    if context:
        head: Segments = (ALPACA_WITH_INPUT, asked, ALPACA_INPUT, Segment(context, CONTEXT), ALPACA_RESPONSE)
    else:
        head = (ALPACA_WITHOUT_INPUT, asked, ALPACA_RESPONSE)
    return head if answer is None else (*head, Segment(answer, ANSWER))


def dialog_segments(
    turns: Sequence[tuple[str, str | None]], template: str = "chat", system: str = CHAT_SYSTEM
) -> Segments:
    """The segments of (user, assistant) turns; the last assistant text is None where the dialog is to be answered.

    "alpaca": the first turn is Alpaca's template without input, as V2 has it for LLaVA's dialogs; further turns repeat
    its two headings. "chat": a system line, then "### Human:" and "### Assistant:", as in the 65B chat model's
    conversation v1_2.

    Deviates: V2 trains on the first turn alone. The system line is ours, and v1_2's example exchange is left out. v1_2
    learns to write "###" behind an answer and stops at that text; here, as in the 65B code's other form (bair_v1), the
    host's end-of-text stands there (`SampleEncoder` puts it), so that a "###" within an answer does not end it.
    """
    if template not in DIALOG_TEMPLATES:
        raise InputError(f"template is {template!r}; allowed: {', '.join(DIALOG_TEMPLATES)}.")
    if any(answer is None for _, answer in turns[:-1]):
        raise InputError("Only the last turn of a dialog may be without an answer.")
    segments: list[Segment] = []
    for number, (asked, answer) in enumerate(turns):
        if template == "alpaca":
            opening = ALPACA_NEXT if number else ALPACA_WITHOUT_INPUT
            segments += [opening, Segment(asked, INSTRUCTION), ALPACA_RESPONSE]
        else:
            opening = CHAT_HUMAN if number or not system else Segment(f"{system}\n{CHAT_HUMAN.text}", TEMPLATE)
            segments += [opening, Segment(f" {asked}", INSTRUCTION), CHAT_ASSISTANT]
        if answer is not None:
            segments.append(Segment(answer if template == "alpaca" else f" {answer}", ANSWER))
    return tuple(segments)


def caption_segments(template: str, caption: str | None = None) -> Segments:
    """The caption prompt: "alpaca" as in V2 (instruction in Alpaca's template), "plain" as in V1's caption demo."""
    if template == "alpaca":
        return alpaca_segments(CAPTION_INSTRUCTION, "", caption)
    if template == "plain":
        return (CAPTION_PLAIN,) if caption is None else (CAPTION_PLAIN, Segment(f" {caption}", ANSWER))
    raise InputError(f"template is {template!r}; allowed: {', '.join(CAPTION_TEMPLATES)}.")


def scienceqa_format(name: str) -> tuple[str, str]:
    """(prompt, answer) parts of a format named as upstream, as letters that mean what they say.

    Q question, C context, M options, L lecture, E solution (explanation), A answer. Upstream's names are swapped in two
    formats, so they come out swapped: its AL appends the solution, its AE the lecture.
    """
    prompt, _, answer = name.partition("-")
    letters = sorted(prompt)
    if letters in (list("CMQ"), list("CLMQ"), list("CEMQ"), list("CELMQ")) and sorted(answer) in (
        ["A"],
        ["A", "L"],
        ["A", "E"],
        ["A", "E", "L"],
    ):
        return prompt, {"AL": "AE", "AE": "AL"}.get(answer, answer)
    raise InputError(
        f"prompt_format is {name!r}; allowed is PROMPT-ANSWER, PROMPT from Q C M (L E), ANSWER from A (L E), "
        "such as QCM-A, QCM-LEA, QCM-ALE, CQM-A, QCML-A."
    )


def scienceqa_segments(problem: Mapping[str, Any], prompt_format: str, caption: str | None, training: bool) -> Segments:
    """The prompt of ScienceQA's authors for one checked problem, ending in "Answer:", and in training its answer.

    Every pair of blanks becomes one blank, once and across segments too, and newlines in lecture and solution are
    written as backslash-n, as upstream does.
    """

    def explanation(letters: str) -> str:
        fields = {"L": "lecture", "E": "solution"}
        return " ".join(problem[fields[letter]].replace("\n", "\\n") for letter in letters)

    prompt, answer = scienceqa_format(prompt_format)
    pieces: list[tuple[str, str]] = []  # (text, kind)
    for part in re.findall(r"[LE]+|[QCM]", prompt):
        start = "\n" if pieces else ""
        if part == "Q":
            pieces += [(f"{start}Question:", TEMPLATE), (f" {problem['question']}", INSTRUCTION)]
        elif part == "C":
            pieces += [(f"{start}Context:", TEMPLATE), (f" {scienceqa_context(problem, caption)}", CONTEXT)]
        elif part == "M":
            pieces.append((f"{start}Options: {scienceqa_options(problem['choices'])}", TEMPLATE))
        else:
            pieces += [(f"{start}BECAUSE:", TEMPLATE), (f" {explanation(part)}", CONTEXT)]
    pieces.append(("\nAnswer:", TEMPLATE))
    if training:
        before, _, after = answer.partition("A")
        text = f"The answer is {LETTERS[problem['answer']]}."
        text = f"{explanation(before)} {text}" if before else text
        text = f"{text} BECAUSE: {explanation(after)}" if after else text
        pieces.append((f" {text}", ANSWER))

    # Neighbours of one kind are one segment; of each pair of blanks the second goes.
    merged = [(kind, "".join(text for text, _ in texts)) for kind, texts in groupby(pieces, key=lambda piece: piece[1])]
    dropped = {match.end() - 1 for match in re.finditer("  ", "".join(text for _, text in merged))}
    segments, start_of_text = [], 0
    for kind, text in merged:
        kept = [sign for place, sign in enumerate(text, start_of_text) if place not in dropped] if dropped else text
        start_of_text += len(text)
        segments.append(Segment("".join(kept), kind))
    last = segments.pop()  # outer blanks go, and a "BECAUSE:" that nothing follows
    return (*segments, Segment(last.text.rstrip().removesuffix("BECAUSE:").rstrip(), last.kind))


def scienceqa_context(problem: Mapping[str, Any], caption: str | None) -> str:
    """The hint, and the picture's caption where captions are used; "N/A" where both are empty."""
    return f"{problem['hint']} {caption or ''}".strip() or "N/A"


def scienceqa_options(choices: Sequence[str]) -> str:
    """The choices as "(A) first (B) second"."""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
