"""Segments to ids: the continuation rule, the labels' boundary, cutting."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from mmadapter.data.samples import Sample, Segment
from mmadapter.data.templates import caption_segments, scienceqa_segments
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.errors import InputError
from tests.data.prompts import alpaca_segments
from tests.data.small_files import problem
from tests.data.tokenizers_at_hand import FAMILIES, llama, llama3

PROBLEM = {
    "question": "Which of the two is larger?",
    "hint": "Figure: a dog and a cat.",
    "choices": ["the dog", "the cat"],
    "answer": 1,
    "lecture": "Look at both.",
    "solution": "The cat sits nearer.",
}
NORMAL = {
    "scienceqa": scienceqa_segments(PROBLEM, "QCM-ALE", None, training=True),
    "alpaca": alpaca_segments("Name two colours", "the rainbow", "Red and blue."),
    "alpaca without input": alpaca_segments("Say something", "", "The dog sleeps."),
    "caption": caption_segments("alpaca", "A red circle left of a blue square"),
    "plain caption": caption_segments("plain", "a red circle"),
}
AWKWARD = ["(A)", ": it", "//x", "\\n", '"so"', "\n\nnext", "  two blanks", "é漢字", "🙂", "</s> x", "\t", "a" * 50]


@pytest.fixture(params=FAMILIES, name="tokenizer")
def _tokenizer(request):
    return FAMILIES[request.param]()


def sample_of(*segments: Segment, where: str = "problems.json, question 17") -> Sample:
    return Sample("17", "questions", segments, None, where)


def begin(encoded: Encoded) -> int:
    """Where the labels of a sample with one answer begin; they reach to its end."""
    ((first, end),) = encoded.spans
    assert end == len(encoded.ids)
    return first


def joint_ids(tokenizer, segments) -> list[int]:
    return tokenizer("".join(segment.text for segment in segments), add_special_tokens=False)["input_ids"]


def decoded(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", ["llama", "byte_level"])
@pytest.mark.parametrize("name", NORMAL)
def test_normal_text_gets_the_ids_of_joint_tokenisation(family, name):
    tokenizer, segments = FAMILIES[family](), NORMAL[name]
    encoded = SampleEncoder(tokenizer, 512).encode(sample_of(*segments))
    assert list(encoded.ids) == [tokenizer.bos_token_id, *joint_ids(tokenizer, segments), tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["scienceqa", "plain caption"])
def test_an_answer_behind_a_blank_has_the_ids_of_joint_tokenisation(tokenizer, name):
    encoded = SampleEncoder(tokenizer, 512).encode(sample_of(*NORMAL[name]))
    labels = list(encoded.ids[begin(encoded) : -1])
    assert labels == joint_ids(tokenizer, NORMAL[name])[-len(labels) :]


def test_llama3_would_merge_colon_and_answer_but_here_it_cannot():
    segments = NORMAL["caption"]
    encoded = SampleEncoder(llama3(), 512).encode(sample_of(*segments))
    assert ":A" in llama3().convert_ids_to_tokens(joint_ids(llama3(), segments))
    assert llama3().convert_ids_to_tokens(encoded.ids)[begin(encoded) - 1 :][:2] == [":", "A"]


def test_llama3_splits_only_a_newline_from_the_full_stop_before_it():
    segments = NORMAL["scienceqa"]
    encoded = SampleEncoder(llama3(), 512).encode(sample_of(*segments))
    joint = joint_ids(llama3(), segments)
    assert decoded(llama3(), encoded.ids[1:-1]) == decoded(llama3(), joint)
    assert len(joint) < len(encoded.ids) - 2 <= len(joint) + 2


@pytest.mark.parametrize("name", NORMAL)
def test_labels_begin_with_the_answers_first_token(tokenizer, name):
    encoded = SampleEncoder(tokenizer, 512).encode(sample_of(*NORMAL[name]))
    answer = NORMAL[name][-1].text
    assert encoded.ids[-1] == tokenizer.eos_token_id
    prompt = SampleEncoder(tokenizer, 512).encode(sample_of(*NORMAL[name][:-1]))
    assert encoded.ids[: begin(encoded)] == prompt.ids
    assert prompt.spans == ()
    colon = SampleEncoder(tokenizer, 512).continuations([":"])[0]
    assert decoded(tokenizer, [*colon, *encoded.ids[begin(encoded) : -1]]) == f":{answer}"


@pytest.mark.parametrize("answer", AWKWARD)
def test_no_token_reaches_over_a_boundary(tokenizer, answer):
    prompt = alpaca_segments("Say it")
    encoder = SampleEncoder(tokenizer, 512)
    encoded = encoder.encode(sample_of(*prompt, Segment(answer, "answer"))) if answer.strip() else None
    ids = encoder.continuations([answer], "answer")[0]
    assert decoded(tokenizer, encoder.continuations([":"])[0] + ids) == f":{answer}"
    if encoded:
        assert encoded.ids[: begin(encoded)] == encoder.encode(sample_of(*prompt)).ids
        assert list(encoded.ids[begin(encoded) : -1]) == ids


def test_sentencepiece_adds_no_blank_between_segments():
    pieces = llama().convert_ids_to_tokens(SampleEncoder(llama(), 64).continuations(["The"])[0])
    assert pieces == ["The"]


def test_special_tokens_in_data_stay_text(tokenizer):
    encoded = SampleEncoder(tokenizer, 64).encode(
        sample_of(Segment("Say", "template"), Segment(" </s> <s>", "instruction"), Segment(" a</s>b", "answer"))
    )
    assert encoded.ids.count(tokenizer.eos_token_id) == encoded.ids.count(tokenizer.bos_token_id) == 1
    assert encoded.ids[-1] == tokenizer.eos_token_id


def test_a_tokenizer_in_plain_python_without_bos_works():
    tokenizer = ByT5Tokenizer()
    encoded = SampleEncoder(tokenizer, 64).encode(sample_of(Segment("Hé:", "template"), Segment(" so", "answer")))
    assert tokenizer.decode(encoded.ids[: begin(encoded)]) == "Hé:"
    assert tokenizer.decode(encoded.ids[begin(encoded) : -1]) == " so"
    assert encoded.ids[-1] == tokenizer.eos_token_id


def test_many_are_encoded_as_each_alone(tokenizer):
    samples = [sample_of(*segments) for segments in NORMAL.values()]
    encoder = SampleEncoder(tokenizer, 512)
    assert encoder.encode_many(samples) == [encoder.encode(sample) for sample in samples]


def long_sample(context: int, instruction: int) -> Sample:
    return sample_of(
        Segment("Question:", "template"),
        Segment(" dog" * instruction, "instruction"),
        Segment("\nContext:", "template"),
        Segment(" cat" * context, "context"),
        Segment("\nAnswer:", "template"),
        Segment(" The answer is B.", "answer"),
    )


def test_a_long_sample_loses_its_contexts_end_first(tokenizer):
    whole = SampleEncoder(tokenizer, 512).encode(long_sample(30, 3))
    encoder = SampleEncoder(tokenizer, len(whole.ids) - 10)
    cut = encoder.encode(long_sample(30, 3))
    assert len(cut.ids) == len(whole.ids) - 10
    assert decoded(tokenizer, cut.ids).count("dog") == 3
    assert decoded(tokenizer, cut.ids).count("cat") < 30
    assert cut.ids[begin(cut) :] == whole.ids[begin(whole) :]
    assert encoder.cut_samples == 1


def test_then_the_instructions_end(tokenizer):
    bare = SampleEncoder(tokenizer, 512).encode(long_sample(0, 0))
    cut = SampleEncoder(tokenizer, len(bare.ids) + 2).encode(long_sample(30, 30))
    text = decoded(tokenizer, cut.ids)
    assert len(cut.ids) == len(bare.ids) + 2
    assert "cat" not in text and "Context:" in text and text.count("dog") in (1, 2)


def test_a_sample_that_cannot_be_cut_to_fit_is_named(tokenizer):
    bare = SampleEncoder(tokenizer, 512).encode(long_sample(0, 0))
    wanted = rf"max_tokens = {len(bare.ids) - 2}.*1 of 1 samples: .*question 17.*2 too many.*at least {len(bare.ids)}"
    with pytest.raises(InputError, match=wanted):
        SampleEncoder(tokenizer, len(bare.ids) - 2).encode(long_sample(5, 5))


def test_a_long_answer_is_cut_and_counted_where_that_is_asked_for(tokenizer):
    bare = SampleEncoder(tokenizer, 512).encode(long_sample(0, 0))
    encoder = SampleEncoder(tokenizer, len(bare.ids) - 3, long_answers="cut")
    cut = encoder.encode(long_sample(5, 5))
    assert cut.ids == bare.ids[:-3] and begin(cut) == begin(bare)
    assert (encoder.cut_samples, encoder.cut_answers) == (1, 1)
    with pytest.raises(InputError, match="do not fit|too many"):
        SampleEncoder(tokenizer, 4, long_answers="cut").encode(long_sample(5, 5))


@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_empty_answer_is_refused_with_its_place(tokenizer, answer):
    sample = sample_of(Segment("Say", "template"), Segment(answer, "answer"), where="alpaca.json, item 3")
    with pytest.raises(InputError, match=r"alpaca\.json, item 3.*answer is empty"):
        SampleEncoder(tokenizer, 64).encode(sample)


def test_each_answer_stands_behind_a_prompt(tokenizer):
    for segments in ([("x", "answer"), ("y", "template")], [("x", "template"), ("y", "answer"), ("z", "answer")]):
        with pytest.raises(InputError, match="each answer stands behind a prompt of its own; segment [02] does not"):
            SampleEncoder(tokenizer, 64).encode(sample_of(*(Segment(*segment) for segment in segments)))


def test_a_choice_that_is_a_control_token_stays_text(tokenizer):
    asked = problem(question="Which ends a text?", choices=["<s>", "</s>"], answer=1)
    encoded = SampleEncoder(tokenizer, 512).encode(sample_of(*scienceqa_segments(asked, "QCM-A", None, True)))
    assert encoded.ids.count(tokenizer.eos_token_id) == encoded.ids.count(tokenizer.bos_token_id) == 1
    assert "(A) <s> (B) </s>" in tokenizer.decode(encoded.ids)
