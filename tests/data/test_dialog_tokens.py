"""Dialogs to ids: every answer is learned, and too long ones lose whole turns."""

from __future__ import annotations

import pytest

from mmadapter.data.samples import Sample
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from tests.data.prompts import dialog_segments
from tests.data.tokenizers_at_hand import FAMILIES

TURNS = [("Which word?", "The dog."), ("Which one is red?", "A red circle is."), ("And now?", "The cat sleeps.")]


@pytest.fixture(params=FAMILIES, name="tokenizer")
def _tokenizer(request):
    return FAMILIES[request.param]()


@pytest.fixture(params=["alpaca", "chat"], name="template")
def _template(request):
    return request.param


def dialog(turns, template: str = "chat") -> Sample:
    return Sample(
        "7",
        "dialogs",
        dialog_segments(turns, template, "Be kind." if template == "chat" else None),
        None,
        "d.json, item 7",
    )


def asked(turns, template: str = "chat") -> Sample:
    return dialog([*turns[:-1], (turns[-1][0], None)], template)


def learned(encoded) -> list[list[int]]:
    return [list(encoded.ids[begin:end]) for begin, end in encoded.spans]


def test_every_answer_is_learned_with_an_end_of_its_own(tokenizer, template):
    encoder = SampleEncoder(tokenizer, 512)
    encoded = encoder.encode(dialog(TURNS, template))
    blank = " " if template == "chat" else ""
    answers = [encoder.continuations([f"{blank}{answer}"], "answer")[0] for _, answer in TURNS]
    assert learned(encoded) == [[*ids, tokenizer.eos_token_id] for ids in answers]
    assert list(encoded.ids).count(tokenizer.eos_token_id) == 3
    assert encoded.spans[-1][1] == len(encoded.ids)


def test_a_dialogs_beginning_has_the_ids_of_the_dialog_alone(tokenizer, template):
    encoder = SampleEncoder(tokenizer, 512)
    whole = encoder.encode(dialog(TURNS, template))
    for count in (1, 2):
        part = encoder.encode(dialog(TURNS[:count], template))
        assert part.ids == whole.ids[: len(part.ids)] and part.spans == whole.spans[:count]


def test_what_is_answered_has_the_ids_that_were_learned(tokenizer, template):
    encoder = SampleEncoder(tokenizer, 512)
    whole, open_end = encoder.encode(dialog(TURNS, template)), encoder.encode(asked(TURNS, template))
    assert open_end.ids == whole.ids[: whole.spans[-1][0]]
    assert dialog(TURNS, template).without_answer() == asked(TURNS, template)
    assert asked(TURNS, template).without_answer() == asked(TURNS, template)


def test_prompt_and_answer_are_those_of_the_last_turn():
    whole, open_end = dialog(TURNS), asked(TURNS)
    assert whole.answer == " The cat sleeps." and open_end.answer is None
    assert whole.prompt == open_end.prompt and whole.prompt.endswith("And now?\n### Assistant:")
    assert "A red circle is." in whole.prompt


@pytest.mark.parametrize("kept", [1, 2])
def test_a_dialog_that_is_too_long_to_be_learned_loses_its_last_turns(tokenizer, template, kept):
    lengths = [len(SampleEncoder(tokenizer, 512).encode(dialog(TURNS[:count], template)).ids) for count in (1, 2, 3)]
    for room in (lengths[kept - 1], lengths[kept] - 1):
        encoder = SampleEncoder(tokenizer, room)
        cut = encoder.encode(dialog(TURNS, template))
        alone = SampleEncoder(tokenizer, 512).encode(dialog(TURNS[:kept], template))
        assert cut.ids == alone.ids and cut.spans == alone.spans
        assert (encoder.cut_turns, encoder.cut_samples) == (3 - kept, 0)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_dialog_that_is_too_long_to_be_answered_loses_its_oldest_turns(tokenizer, template, kept):
    alone = SampleEncoder(tokenizer, 512).encode(asked(TURNS[3 - kept :], template))
    longer = SampleEncoder(tokenizer, 512).encode(asked(TURNS[2 - kept :], template))
    for room in (len(alone.ids), len(longer.ids) - 1):
        encoder = SampleEncoder(tokenizer, room)
        cut = encoder.encode(asked(TURNS, template))
        assert cut.ids == alone.ids and cut.spans == alone.spans
        assert (encoder.cut_turns, encoder.cut_samples) == (3 - kept, 1)


def test_the_only_turn_that_is_left_is_cut_as_a_single_one(tokenizer):
    first = SampleEncoder(tokenizer, 512).encode(dialog(TURNS[:1]))
    encoder = SampleEncoder(tokenizer, len(first.ids) - 2)
    assert encoder.encode(dialog(TURNS)).ids == encoder.encode(dialog(TURNS[:1])).ids
    assert (encoder.cut_turns, encoder.cut_samples) == (2, 2)
    with pytest.raises(InputError, match="d.json, item 7"):
        SampleEncoder(tokenizer, 4).encode(dialog(TURNS))
    cutting = SampleEncoder(tokenizer, len(first.ids) - 6, long_answers="cut")
    cutting.encode(dialog(TURNS))
    assert cutting.cut_turns == 2


def test_an_empty_answer_in_the_middle_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"d\.json, item 7.*answer is empty"):
        SampleEncoder(tokenizer, 512).encode(dialog([TURNS[0], ("Why?", " "), TURNS[2]]))


def test_a_mark_of_the_template_within_an_answer_ends_nothing(tokenizer):
    encoded = SampleEncoder(tokenizer, 512).encode(dialog([("Go", "One\n### Human: two </s>"), TURNS[0]]))
    assert len(encoded.spans) == 2 and list(encoded.ids).count(tokenizer.eos_token_id) == 2
