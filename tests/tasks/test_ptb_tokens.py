"""Caption tokens: those of the reference tokenizer, as golden values, and compared with Java where it is present."""

import json
import random
from pathlib import Path

import pytest

from mmadapter.tasks.ptb_tokens import tokenize_captions
from tests.tasks.reference_tokenizer import needs_java, reference_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_tokens.json").read_text(encoding="utf-8"))
TRAPS = [caption for caption, _ in GOLDEN["tokens"]]
WORDS = sorted({word for caption in TRAPS for word in caption.split()})
PLAIN = ["a", "man", "dog", "street", "riding", "two", "The", "half", "with", "at", "signs", "people's", "isn't", "red"]
AROUND = ["%s", "%s", "%s", "(%s)", '"%s"', "'%s'", "“%s”", "[%s]", "#%s", "*%s*", "%s,", "%s.", "%s!", "%s...", "%s;"]


def differences(captions, folder):
    found = zip(captions, reference_tokens(captions, folder), tokenize_captions(captions), strict=True)
    return [(caption, wanted, got) for caption, wanted, got in found if wanted != got]


def made_captions(count, seed):
    """Plausible captions: trap words and plain ones, some in brackets or quotes, or with punctuation at their end."""
    choose = random.Random(seed)
    endings = ["", "", ".", "!", "...", " .", ". The end.", " etc.", "?!"]
    return [
        " ".join(
            choose.choice(AROUND) % choose.choice(PLAIN) if choose.random() < 0.7 else choose.choice(WORDS)
            for _ in range(choose.randint(3, 9))
        )
        + choose.choice(endings)
        for _ in range(count)
    ]


def test_captions_full_of_traps_give_the_tokens_of_the_reference():
    tokens = tokenize_captions(TRAPS)
    for (caption, wanted), got in zip(GOLDEN["tokens"], tokens, strict=True):
        assert got == wanted, caption


@pytest.mark.parametrize(
    "separator", ["\r", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\t\xa0"]
)
def test_no_line_separator_shifts_the_captions_after_it(separator):
    captions = [f"a dog{separator}on grass", f"{separator}two cats{separator}", "", separator, "the end"]
    assert tokenize_captions(captions) == ["a dog on grass", "two cats", "", "", "the end"]


def test_no_caption_gives_no_tokens_and_an_empty_one_keeps_its_place():
    assert tokenize_captions([]) == []
    assert tokenize_captions([""]) == [""] and tokenize_captions(["...", "a"]) == ["", "a"]


def test_a_letter_at_the_end_keeps_its_full_stop_unless_a_sentence_starts_after_it():
    assert tokenize_captions(["vitamin C.", "the man"]) == ["vitamin c.", "the man"]
    assert tokenize_captions(["vitamin C.", "The man"]) == ["vitamin c", "the man"]  # as the reference does


@needs_java
def test_the_golden_tokens_are_those_of_the_reference_here(tmp_path):
    assert reference_tokens(TRAPS, tmp_path) == [wanted for _, wanted in GOLDEN["tokens"]]


@needs_java
@pytest.mark.parametrize("seed", [1, 2])
def test_made_captions_are_tokenised_as_by_the_reference(seed, tmp_path):
    assert differences(made_captions(4000, seed), tmp_path) == []


@needs_java
def test_every_character_is_seen_as_by_the_reference(tmp_path):
    signs = [chr(code) for code in range(0x21, 0x3000) if not chr(code).isspace()]
    signs = [sign for sign in signs if not 0x700 <= ord(sign) < 0x1E00 and sign.isprintable()]
    captions = [form.replace("x", sign) for sign in signs for form in ("axb", "x", "1x2", "dog x cat")]
    assert differences(captions, tmp_path) == []


@needs_java
@pytest.mark.reference_data
def test_all_real_captions_are_tokenised_as_by_the_reference(reference_data, tmp_path):
    for name in ("captions_karpathy_val.json", "captions_val2014.json"):
        notes = json.loads((reference_data / "coco_caption" / "annotations" / name).read_text())["annotations"]
        assert len(notes) > 5000
        assert differences([note["caption"] for note in notes], tmp_path) == []
