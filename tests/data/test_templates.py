"""Prompt texts, letter for letter."""

from __future__ import annotations

import pytest

from mmadapter.data.templates import caption_segments, scienceqa_segments
from mmadapter.errors import InputError
from tests.data.prompts import alpaca_segments, dialog_segments
from tests.data.small_files import problem

QUESTION = problem(question="Which?", hint="A dog.", choices=["dog", "cat"], answer=1, lecture="L1\nL2", solution="E1")
PROMPT = "Question: Which?\nContext: A dog.\nOptions: (A) dog (B) cat\nAnswer:"


def text(segments) -> str:
    return "".join(segment.text for segment in segments)


def shaped(fields, prompt_format: str, training: bool = True, caption: str | None = None) -> str:
    return text(scienceqa_segments(fields, prompt_format, caption, training))


@pytest.mark.parametrize(
    ("prompt_format", "answer"),
    [
        ("QCM-A", "The answer is B."),
        ("QCM-LA", r"L1\nL2 The answer is B."),
        ("QCM-EA", "E1 The answer is B."),
        ("QCM-LEA", r"L1\nL2 E1 The answer is B."),
        ("QCM-ELA", r"E1 L1\nL2 The answer is B."),
        ("QCM-ALE", r"The answer is B. BECAUSE: L1\nL2 E1"),
        ("QCM-AEL", r"The answer is B. BECAUSE: E1 L1\nL2"),
        ("QCM-AL", "The answer is B. BECAUSE: E1"),  # upstream's own swap
        ("QCM-AE", r"The answer is B. BECAUSE: L1\nL2"),
    ],
)
def test_answers_of_all_upstream_formats(prompt_format, answer):
    assert shaped(QUESTION, prompt_format) == f"{PROMPT} {answer}"


@pytest.mark.parametrize(
    ("prompt_format", "prompt"),
    [
        ("QCM-A", PROMPT),
        ("CQM-A", "Context: A dog.\nQuestion: Which?\nOptions: (A) dog (B) cat\nAnswer:"),
        ("QCML-A", r"Question: Which?|Context: A dog.|Options: (A) dog (B) cat|BECAUSE: L1\nL2|Answer:"),
        ("QCME-A", "Question: Which?|Context: A dog.|Options: (A) dog (B) cat|BECAUSE: E1|Answer:"),
        ("QCMLE-A", r"Question: Which?|Context: A dog.|Options: (A) dog (B) cat|BECAUSE: L1\nL2 E1|Answer:"),
        ("QCLEM-A", r"Question: Which?|Context: A dog.|BECAUSE: L1\nL2 E1|Options: (A) dog (B) cat|Answer:"),
    ],
)
def test_prompts_of_all_upstream_formats(prompt_format, prompt):
    assert shaped(QUESTION, prompt_format, training=False) == prompt.replace("|", "\n")


def test_context_is_hint_and_caption_or_not_available():
    assert "\nContext: A dog. a brown dog\n" in shaped(QUESTION, "QCM-A", caption="a brown dog")
    assert "\nContext: a brown dog\n" in shaped(problem(), "QCM-A", caption="a brown dog")
    assert "\nContext: N/A\n" in shaped(problem(), "QCM-A")


def test_double_blanks_become_one_and_empty_explanations_vanish():
    fields = problem(question="a  b ", hint="c", lecture="", solution="")
    assert shaped(fields, "QCM-LEA").startswith("Question: a b \nContext: c\n")
    assert shaped(fields, "QCM-ALE").endswith("Answer: The answer is A.")
    assert "Answer: The answer is A." in shaped(problem(lecture="", solution=""), "QCM-LA")


def test_only_question_and_context_may_be_cut():
    kinds = {segment.kind: segment.text for segment in scienceqa_segments(QUESTION, "QCM-A", None, True)}
    assert kinds == {
        "instruction": " Which?",
        "context": " A dog.",
        "fixed": "\nOptions: (A) dog (B) cat\nAnswer:",
        "answer": " The answer is B.",
    }


@pytest.mark.parametrize("name", ["", "QCM", "QC-A", "QCM-B", "QQM-A", "QCM-", "QCM-LE", "qcm-a", "QCM-AA", "QCM-A-A"])
def test_an_unknown_format_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="QCM-LEA"):
        shaped(QUESTION, name)


def test_alpacas_two_templates():
    assert text(alpaca_segments("Add.", "1 2", "3")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:3"
    )
    assert text(alpaca_segments("Sing.")) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:"
    )


TURNS = [("Who?", "A dog."), ("Why?", "It is so."), ("Sure?", None)]


def test_a_dialog_in_alpacas_template_repeats_its_headings():
    assert dialog_segments(TURNS[:1], "alpaca") == alpaca_segments("Who?", "", "A dog.")
    assert dialog_segments([("Who?", None)], "alpaca") == alpaca_segments("Who?")
    assert text(dialog_segments(TURNS, "alpaca")) == (
        f"{text(alpaca_segments('Who?', '', 'A dog.'))}\n\n### Instruction:\nWhy?\n\n### Response:It is so."
        "\n\n### Instruction:\nSure?\n\n### Response:"
    )


def test_a_dialog_in_the_chat_template():
    segments = dialog_segments(TURNS, "chat", "Be kind.")
    assert text(segments) == (
        "Be kind.\n\n### Human: Who?\n### Assistant: A dog.\n### Human: Why?\n### Assistant: It is so."
        "\n### Human: Sure?\n### Assistant:"
    )
    assert [segment.text for segment in segments if segment.kind == "answer"] == [" A dog.", " It is so."]
    assert [segment.text for segment in segments if segment.kind == "instruction"] == [" Who?", " Why?", " Sure?"]
    assert text(dialog_segments(TURNS[:1], "chat", "")) == "\n### Human: Who?\n### Assistant: A dog."
    assert text(dialog_segments(TURNS)).startswith("This is a conversation.")


def test_bad_dialogs_are_refused():
    with pytest.raises(InputError, match="template=plain has place for only one turn. Set template to one of auto"):
        dialog_segments(TURNS, "plain")
    with pytest.raises(InputError, match="Only the last turn"):
        dialog_segments(TURNS[::-1])


def test_caption_prompts():
    assert text(caption_segments("alpaca", "A dog")).endswith("Generate caption of this image\n\n### Response:A dog")
    assert text(caption_segments("plain", "A dog")) == "Generate caption of this image : A dog"
    assert text(caption_segments("plain")) == "Generate caption of this image :"
    with pytest.raises(InputError, match="'llava'; allowed: auto, alpaca, vicuna, plain, chat"):
        caption_segments("llava")
