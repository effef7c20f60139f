"""Prompt texts as segments: templates of instructions and dialogs, the caption instruction (V1, V2), ScienceQA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mmadapter.data.chat_templates import chat_segments, has_chat_template
from mmadapter.data.samples import ANSWER, CONTEXT, FIXED, INSTRUCTION, TEMPLATE, Segment
from mmadapter.errors import InputError

Segments = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked, and the answer; None where it is to be answered."""

    asked: str
    answer: str | None
    context: str = ""
    """the instruction's input, where there is one"""


TEMPLATES = ("auto", "alpaca", "vicuna", "plain", "chat")
"""The names under which settings and calls ask for a template; the first one is the default."""
SINGLE = ("plain",)
"""The templates that have no place for a second turn."""
PAPER = "paper"
"""ScienceQA's own prompt, which ends in "Answer:" and stands in no other frame; for its questions alone."""
SCIENCEQA_TEMPLATES = (PAPER, *(name for name in TEMPLATES if name not in SINGLE))
"""The templates of ScienceQA's questions; the first one is the default. "plain" is none, as "paper" has no frame."""
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
ALPACA_NEXT = Segment("\n\n### Instruction:\n", TEMPLATE)
CHAT_HUMAN = Segment("\n### Human:", TEMPLATE)
CHAT_ASSISTANT = Segment("\n### Assistant:", TEMPLATE)
CHAT_SYSTEM = "This is a conversation. The assistant gives correct, complete and friendly answers."
VICUNA_USER = Segment("USER:", TEMPLATE)
VICUNA_ASSISTANT = Segment(" ASSISTANT:", TEMPLATE)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CAPTION_INSTRUCTION = "Generate caption of this image"
CAPTION_PLAIN = Segment(f"{CAPTION_INSTRUCTION} :", TEMPLATE)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def chosen_template(template: str, tokenizer: Any, otherwise: str = "alpaca") -> str:
    """What `template` means with this tokenizer: "auto" is its own chat template, or `otherwise` where it has none.

    Without a tokenizer (None), where only predictions are scored, there is no chat template.
    """
    if template not in TEMPLATES:
        raise InputError(f"template is {template!r}; allowed: {', '.join(TEMPLATES)}.")
    return otherwise if template == "auto" and not has_chat_template(tokenizer) else template


def rendered(turns: Sequence[Turn], system: str | None, template: str, tokenizer: Any) -> Segments:
    """The segments of an instruction or a dialog; the last turn has no answer where it is to be answered.

    * auto: the tokenizer's chat template; alpaca where it has none, or where there is no tokenizer (None).
    * alpaca: Alpaca's frame with input where there is one, else without; the answer stands directly behind the colon.
      Further turns repeat its headings, as V2 has it for LLaVA's dialogs. A system text stands in front of it all.
    * vicuna: Vicuna 1.1's "USER: ... ASSISTANT: ...", end-of-text behind each answer.
    * chat: "### Human:" and "### Assistant:", as in the 65B chat model's conversation v1_2.
    * plain: the text as it stands, and its answer as its continuation; one turn, no system text.

    `system`: None is the template's own system text (vicuna, chat and many chat templates have one); "" is none, and in
    a chat template its own.

    Deviates: the papers put every text into a frame of their own; "auto" takes the host's, where it has one.
    Deviates: V2 trains on the first turn alone. The system line of "chat" is ours, and v1_2's example exchange is left
    out. v1_2 learns to write "###" behind an answer and stops at that text; here, as in the 65B code's other form
    (bair_v1), the host's end-of-text stands there (`SampleEncoder` puts it), so that a "###" within an answer does not
    end it.
    """
    template = chosen_template(template, tokenizer)
    if any(turn.answer is None for turn in turns[:-1]):
        raise InputError("Only the last turn of a dialog may be without an answer.")
    if template in SINGLE and (len(turns) > 1 or system):
        told = "only one turn" if len(turns) > 1 else "no system text"
        fitting = ", ".join(name for name in TEMPLATES if name not in SINGLE)
        raise InputError(f"template={template} has place for {told}. Set template to one of {fitting}.")
    if template == "auto":
        return chat_segments([(turn.asked, turn.context, turn.answer) for turn in turns], system, tokenizer)

    segments: list[Segment] = []
    for number, turn in enumerate(turns):
        asked, answer = Segment(turn.asked, INSTRUCTION), turn.answer
        context = [Segment(turn.context, CONTEXT)] if turn.context else []
        if template == "alpaca":
            opening = ALPACA_NEXT if number else ALPACA_WITH_INPUT if context else ALPACA_WITHOUT_INPUT
            if system and not number:
                segments.append(Segment(f"{system}\n\n", FIXED))
            segments += [opening, asked, *([ALPACA_INPUT, *context] if context else []), ALPACA_RESPONSE]
        elif template == "plain":
            segments += [asked, *context]
        else:
            user, assistant = (VICUNA_USER, VICUNA_ASSISTANT) if template == "vicuna" else (CHAT_HUMAN, CHAT_ASSISTANT)
            line = system
            if line is None:
                line = VICUNA_SYSTEM if template == "vicuna" else CHAT_SYSTEM
            if line and not number:
                user = Segment(f"{line}{' ' if template == 'vicuna' else chr(10)}{user.text}", FIXED)
            between = "\n\n" if context else ""
            segments += [user, Segment(f" {turn.asked}{between}", INSTRUCTION), *context, assistant]
        if answer is not None:
            segments.append(Segment(f" {answer}" if template in ("vicuna", "chat") else answer, ANSWER))
    return tuple(segments)


def caption_segments(template: str, caption: str | None = None, tokenizer: Any = None) -> Segments:
    """The caption prompt: the instruction of V2 in a template, or "plain" as in V1's caption demo, without any."""
    if template == "plain":
        return (CAPTION_PLAIN,) if caption is None else (CAPTION_PLAIN, Segment(f" {caption}", ANSWER))
    return rendered([Turn(CAPTION_INSTRUCTION, caption)], None, template, tokenizer)


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


def scienceqa_segments(
    problem: Mapping[str, Any],
    prompt_format: str,
    caption: str | None,
    training: bool,
    template: str = PAPER,
    tokenizer: Any = None,
) -> Segments:
    """The prompt of ScienceQA's authors for one checked problem, and in training its answer.

    With template="paper" the prompt ends in "Answer:". In any other template what stands in front of that is the text
    of one user turn.

    Every pair of blanks becomes one blank, once and across segments too, and newlines in lecture and solution are
    written as backslash-n, as upstream does. The prompt's own words are FIXED, as the choices within it are: none of it
    is cut, and a choice "</s>" is that text and no end.
    """

    def explanation(letters: str) -> str:
        fields = {"L": "lecture", "E": "solution"}
        return " ".join(problem[fields[letter]].replace("\n", "\\n") for letter in letters)

    prompt, answer = scienceqa_format(prompt_format)
    pieces: list[tuple[str, str]] = []  # (text, kind)
    for part in re.findall(r"[LE]+|[QCM]", prompt):
        start = "\n" if pieces else ""
        if part == "Q":
            pieces += [(f"{start}Question:", FIXED), (f" {problem['question']}", INSTRUCTION)]
        elif part == "C":
            pieces += [(f"{start}Context:", FIXED), (f" {scienceqa_context(problem, caption)}", CONTEXT)]
        elif part == "M":
            pieces.append((f"{start}Options: {scienceqa_options(problem['choices'])}", FIXED))
        else:
            pieces += [(f"{start}BECAUSE:", FIXED), (f" {explanation(part)}", CONTEXT)]
    if template == PAPER:
        segments = _tidied([*pieces, ("\nAnswer:", FIXED)])
    else:  # one user turn, whose pieces keep their kinds: the question and its context may be cut, options never
        asked = _tidied(pieces if pieces[-1][0].strip() else pieces[:-2])  # a "BECAUSE:" that nothing follows
        text = "".join(segment.text for segment in asked)
        framed = rendered([Turn(text, None)], None, template, tokenizer)
        place = next(place for place, segment in enumerate(framed) if segment.kind == INSTRUCTION)
        front, _, behind = framed[place].text.partition(text)  # blanks that the template keeps with the text
        asked = [Segment(front + asked[0].text, asked[0].kind), *asked[1:]]
        asked = [*asked[:-1], Segment(asked[-1].text + behind, asked[-1].kind)]
        segments = [*framed[:place], *asked, *framed[place + 1 :]]
    if not training:
        return tuple(segments)
    before, _, after = answer.partition("A")
    text = scienceqa_answer(problem["answer"])
    text = f"{explanation(before)} {text}" if before else text
    text = f"{text} BECAUSE: {explanation(after)}" if after else text
    (learned,) = _tidied([(f" {text}", ANSWER)])
    return (*segments, *scienceqa_answer_segments(learned.text.removeprefix(" "), template, tokenizer))


def _tidied(pieces: Sequence[tuple[str, str]]) -> list[Segment]:
    """Pieces of (text, kind) as segments: neighbours of one kind are one, of each pair of blanks the second goes.

    Blanks at the end go, and a "BECAUSE:" that nothing follows.
    """
    merged = [(kind, "".join(text for text, _ in texts)) for kind, texts in groupby(pieces, key=lambda piece: piece[1])]
    dropped = {match.end() - 1 for match in re.finditer("  ", "".join(text for _, text in merged))}
    segments, start_of_text = [], 0
    for kind, text in merged:
        kept = [sign for place, sign in enumerate(text, start_of_text) if place not in dropped] if dropped else text
        start_of_text += len(text)
        segments.append(Segment("".join(kept), kind))
    last = segments.pop()
    return [*segments, Segment(last.text.rstrip().removesuffix("BECAUSE:").rstrip(), last.kind)]


def scienceqa_answer(choice: int) -> str:
    """The answer that names the choice of this index, as ScienceQA's authors word it."""
    return f"The answer is {LETTERS[choice]}."


def scienceqa_answer_segments(text: str, template: str = PAPER, tokenizer: Any = None) -> Segments:
    """What stands behind a question's prompt where its answer is `text`."""
    if template == PAPER:
        return (Segment(f" {text}", ANSWER),)
    prompt = rendered([Turn("?", None)], None, template, tokenizer)
    return rendered([Turn("?", text)], None, template, tokenizer)[len(prompt) :]


def scienceqa_context(problem: Mapping[str, Any], caption: str | None) -> str:
    """The hint, and the picture's caption where captions are used; "N/A" where both are empty."""
    return f"{problem['hint']} {caption or ''}".strip() or "N/A"


def scienceqa_options(choices: Sequence[str]) -> str:
    """The choices as "(A) first (B) second"."""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
