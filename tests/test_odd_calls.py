"""Odd questions to a model: each has an answer, or is refused in one sentence that names what was given."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy
import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.model import Dialog
from tests.models import model_on, picture

PLAIN = {"template": "plain", "max_new_tokens": 3}


@pytest.fixture(scope="module")
def model():
    return model_on("llama_gqa", seed=2)


ANSWERED = {
    "right to left": "שלום \u202e what is red",
    "emoji": "👩‍👩‍👧 🏳️‍🌈 what",
    "controls": "what\x00\x1b[2J is\u2028 red",
    "markup": "</s><s>[INST]<image>",
    "very long": "red circle " * 10_000,
    "one character": "a",
}


@pytest.mark.parametrize("prompt", ANSWERED.values(), ids=list(ANSWERED))
def test_it_is_answered(prompt, model, caplog):
    with caplog.at_level(logging.WARNING, "mmadapter"):
        assert isinstance(model.generate(prompt, **PLAIN)[0], str)
        assert isinstance(model.chat(prompt, template="alpaca", max_new_tokens=3)[0], str)
    assert ("are longer than" in caplog.text) is (len(prompt) > 1000)


REFUSED = [
    ({"prompts": ""}, "A prompt is ''"),
    ({"prompts": ["a", " \n\t"]}, r"A prompt is ' \\n\\t'"),
    ({"prompts": None}, "prompts=None: give one of them, or a list"),
    ({"prompts": 5}, "prompts=5: give"),
    ({"prompts": {"a": 1}}, r"prompts=\{'a': 1\}: give"),
    ({"prompts": {"a"}}, r"prompts=\{'a'\}: give"),
    ({"prompts": b"a"}, "prompts=b'a': give"),
    ({"prompts": ["a", 5]}, "A prompt is 5; it must be a text"),
    ({"prompts": "a \ud83d b"}, r"character 3 is '\\ud83d', half of a character"),
    ({"images": 5}, "images=5: give"),
    ({"images": [5]}, "An image is 5; give a path or a PIL image"),
    ({"images": "x" * 5000}, "no such image file"),
    ({"images": "a\0b.png"}, "image file"),
    ({"images": "~nosuchuser/x.png"}, "no such image file"),
    ({"images": Path("no/such.png")}, "there is no such image file"),
    ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
    ({"max_new_tokens": -3}, "max_new_tokens=-3: must be at least 1"),
    ({"max_new_tokens": "5"}, "max_new_tokens='5': must be a whole number"),
    ({"max_new_tokens": None}, "max_new_tokens=None: must be a whole number"),
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5: must be a whole number"),
    ({"max_new_tokens": True}, "max_new_tokens=True: must be a whole number"),
    ({"max_new_tokens": 10**30}, "max_new_tokens: a number of some 30 digits; it must be below"),
    ({"temperature": float("nan")}, "temperature=nan: must be"),
    ({"temperature": float("inf")}, "temperature=inf: must be a finite number"),
    ({"temperature": -0.5}, "temperature=-0.5: must be at least 0"),
    ({"temperature": "hot"}, "temperature='hot': must be a number"),
    ({"top_p": 0.0}, "top_p=0.0: must be above 0"),
    ({"top_p": float("nan")}, "top_p=nan: must be"),
    ({"top_p": 1.5}, "top_p=1.5: must be at most 1"),
    ({"beams": 65}, "beams=65: at most 64, the number of tokens that the host knows"),
    ({"beams": 10**9}, "beams=1000000000: at most 64"),
    ({"beams": 1.5}, "beams=1.5: must be a whole number"),
    ({"batch_size": 1.5}, "batch_size=1.5: must be a whole number"),
    ({"batch_size": None}, "batch_size=None: must be a whole number"),
    ({"seed": 2**64}, r"seed: a number of some 19 digits; it must be below 2\*\*64"),
    ({"seed": 10**5000}, "seed: a number of some 4983 digits"),
    ({"max_new_tokens": -(10**5000)}, "max_new_tokens: a number of some"),
    ({"seed": -(2**63) - 1}, "seed=-9223372036854775809: must be at least -9223372036854775808"),
    ({"seed": "a"}, "seed='a': must be a whole number"),
    ({"seed": 1.0}, "seed=1.0: must be a whole number"),
    ({"template": 5}, "template is 5"),
]


@pytest.mark.parametrize(
    ("given", "says"), REFUSED, ids=[f"{number}-{'-'.join(one[0])}" for number, one in enumerate(REFUSED)]
)
def test_it_is_refused_in_one_sentence(given, says, model):
    with pytest.raises(InputError, match=says) as refused:
        model.generate(**{"prompts": "what is red", **PLAIN, **given})
    assert len(str(refused.value)) < 1000


def test_all_whole_numbers_of_64_bits_are_seeds(model):
    def drawn(seed):
        return model.generate(["what is red"] * 2, temperature=1.5, seed=seed, batch_size=1, **PLAIN)

    for seed in (2**63 - 1, 2**64 - 1, -(2**63), torch.tensor(7)):
        assert drawn(seed) == drawn(seed)
    assert drawn(-1) == drawn(2**64 - 1) and drawn(7) == drawn(numpy.int64(7))
    state = torch.get_rng_state()
    for seed in (-1, -5, -(2**63)):  # as torch itself takes them
        torch.manual_seed(seed)
        first = torch.rand(3)
        torch.manual_seed(seed % 2**64)
        assert torch.equal(first, torch.rand(3))
    torch.set_rng_state(state)


def test_numbers_of_numpy_and_torch_are_numbers(model):
    expected = model.generate("what is red", template="plain", max_new_tokens=3, beams=2)
    numbers = {"max_new_tokens": numpy.int64(3), "beams": torch.tensor(2), "temperature": numpy.float32(0)}
    assert model.generate("what is red", template="plain", **numbers) == expected


def test_as_many_beams_as_tokens_and_no_prompts_at_all(model):
    assert len(model.generate("what is red", template="plain", max_new_tokens=2, beams=64)) == 1
    assert model.generate([], **PLAIN) == []


def test_a_thousand_prompts_in_one_call_are_answered_as_each_alone(model, tmp_path):
    words = ["what", "colour", "is", "the", "circle", "square", "red", "blue"]
    prompts = [f"{words[n % 8]} {words[n // 8 % 8]} {words[n // 64 % 8]}" for n in range(1000)]
    images = [picture(tmp_path, 1) if n % 2 else None for n in range(1000)]
    answers = model.generate(prompts, images, template="plain", max_new_tokens=1, batch_size=250)
    assert len(answers) == 1000
    for place in (0, 1, 333, 998):
        assert answers[place : place + 1] == model.generate(
            prompts[place], images[place], template="plain", max_new_tokens=1
        )


CHATS = [
    (("a \udc00",), {}, "A prompt: character 3"),
    (("a",), {"system": "b \ud800"}, "system: character 3"),
    (("a",), {"system": 5}, "system is 5; it must be a text"),
    (("a",), {"history": Dialog((("a", "\ud800"),))}, "An answer: character 1"),
    (("a",), {"history": [("a", "b")]}, "give the dialog that `chat` returned"),
    (("a",), {"history": ()}, "give the dialog that `chat` returned"),
    ((5,), {}, "A prompt is 5"),
    (("a",), {"temperature": float("inf")}, "finite"),
]


@pytest.mark.parametrize(("given", "named", "says"), CHATS)
def test_an_odd_turn_is_refused_by_chat_and_by_stream(given, named, says, model):
    for ask in (model.chat, model.stream):
        with pytest.raises(InputError, match=says):
            ask(*given, **{"max_new_tokens": 3, "template": "alpaca", **named})


@pytest.mark.parametrize(
    ("triples", "says"),
    [
        ([], "no triple"),
        (None, "triples=None"),
        ([("a", "b")], r"takes .prompt, answer, image or None., and got \('a', 'b'\)"),
        ([("a", None, None)], "takes .prompt, answer"),
        ([("a", "\ud800", None)], "An answer: character 1"),
        ([("a", " ", None)], "the answer is empty"),
        (["abc"], "takes .prompt, answer"),
    ],
)
def test_an_odd_triple_is_refused(triples, says, model):
    with pytest.raises(InputError, match=says):
        model.loss_of(triples)


@pytest.mark.slow
def test_five_hundred_calls_leave_the_memory_flat(model, tmp_path):
    import gc
    import resource

    image = picture(tmp_path, 1)

    def ask(times: int) -> int:
        for number in range(times):
            model.generate(["what is red", "a circle"], [image, None], temperature=1.0, seed=number, **PLAIN)
            if number % 50 == 0:
                model.chat("what is left", image, max_new_tokens=3)
                "".join(model.stream("what is left", image, max_new_tokens=3))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = ask(60)  # what libraries keep from their first calls
    assert ask(500) - before < 20e6
