"""One model asked by many threads at once: each gets what it would get alone."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmadapter.data.batches import make_batch
from mmadapter.hosts.settings import GenerationConf
from mmadapter.model import AdaptedModel
from tests.models import picture, sample
from tests.test_model_answers import seeing_model_on

THREADS = 8
QUESTIONS = ["what is on the left", "a circle", "what colour is the square", "red and blue"]


@pytest.fixture(autouse=True)
def threads_that_change_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def streamed(model: AdaptedModel, *given, **settings) -> str:
    return "".join(model.stream(*given, **settings))


def questions_to(model: AdaptedModel, folder) -> list:
    """Calls of every door, with other questions, pictures and seeds."""
    images = [picture(folder, number) for number in range(3)]
    plain = {"template": "plain", "max_new_tokens": 5}
    asked = []
    for number, question in enumerate(QUESTIONS):
        image = [None, *images][number]
        sampled = {"temperature": 1.3, "seed": number, "max_new_tokens": 5}
        rows = [sample(question, "red", image), sample("what", "a blue square", images[number % 3])]
        encoder = model.encoder(64)
        batch = make_batch([encoder.encode(one) for one in rows], 0).with_features(model.features)
        ids = torch.tensor([[1, 5 + number, 7, 9]])
        asked += [
            lambda q=question, i=image: model.generate(q, i, **plain),
            lambda q=question, i=image: model.generate([q, "what"], [i, images[0]], beams=2, **plain),
            lambda q=question, i=image, s=sampled: model.generate([q] * 3, i, batch_size=2, **s),
            lambda q=question, i=image: model.chat(q, i, max_new_tokens=5)[0],
            lambda q=question, i=image, s=sampled: streamed(model, q, i, **s),
            lambda r=rows, n=number: model.answer(r, GenerationConf(max_new_tokens=4, temperature=1.1), seed=n),
            lambda q=question, i=image: model.loss_of([(q, "red", i), ("what", "a circle", None)]).item(),
            lambda b=batch: (model(b).item(), model.log_likelihood(b).tolist()),
            lambda t=ids: model.logits(t).sum().item(),
        ]
    return asked


@pytest.mark.parametrize("name", ["llama_gqa", "v2 llama_gqa"])
def test_eight_threads_get_the_answers_that_each_would_get_alone(name, tmp_path):
    model = seeing_model_on(name)
    asked = questions_to(model, tmp_path)
    alone = [ask() for ask in asked]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(THREADS) as pool:
        together = [one.result() for one in [pool.submit(ask) for ask in asked]]
    assert together == alone
    assert torch.equal(torch.get_rng_state(), state)
    assert len({str(answer) for answer in alone}) > len(alone) // 2, "the questions have different answers"


def test_two_models_on_two_hosts_draw_their_own_random_numbers():
    models = [seeing_model_on("llama_gqa"), seeing_model_on("v2 llama_gqa")]
    asked = [
        lambda m=model, n=number: m.generate("what is red", temperature=1.2, seed=n, max_new_tokens=8)
        for number in range(8)
        for model in models
    ]
    alone = [ask() for ask in asked]
    with ThreadPoolExecutor(THREADS) as pool:
        assert [one.result() for one in [pool.submit(ask) for ask in asked]] == alone


def test_a_stream_that_is_left_lets_the_others_go_on():
    model = seeing_model_on("llama_gqa")
    expected = model.generate("a circle", max_new_tokens=5)
    opened = [model.stream("what is left", max_new_tokens=30, template="alpaca") for _ in range(4)]
    for stream in opened[:2]:
        next(stream, None)
    opened[0].close()  # left in the middle
    del stream, opened  # one is forgotten in the middle, two were never begun
    assert model.generate("a circle", max_new_tokens=5) == expected
    stream = model.stream("what is left", max_new_tokens=30, template="alpaca")
    first = next(stream, "")
    assert model.generate("a circle", max_new_tokens=5) == expected, "asked while a stream is open"
    assert first + "".join(stream) == model.chat("what is left", max_new_tokens=30, template="alpaca")[0]
