"""A batch as a forest of segments: the same loss and the same gradients as the padded batch, on every host family and
with every method, open gates.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.forest import make_forest_batch
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import Encoded
from mmadapter.hosts.attention import AttentionInputs
from mmadapter.model import AdaptedModel
from tests.families import FAMILIES, VOCABULARY
from tests.models import model_on

END = 2
EXACT = 1e-5  # relative difference of losses and of each gradient, float32


def sequence(*parts: list[int], answer: list[int], image: str | None = None, number: int = 0) -> Encoded:
    """Tokens in parts and an answer with its end, under a picture of that name."""
    ids = [token for part in parts for token in part]
    sample = Sample(str(number), "s", (Segment("x", "answer"),), image and Path(image), f"sample {number}")
    return Encoded(sample, array("i", [*ids, *answer, END]), ((len(ids), len(ids) + len(answer) + 1),))


def tokens(drawn: random.Random, length: int) -> list[int]:
    return [drawn.randrange(3, VOCABULARY) for _ in range(length)]


def deep_tree(images: list[str | None]) -> list[Encoded]:
    """A template, two instructions, five answers to each, one of them only its end; each instruction with a picture of
    `images`; and a sample that shares nothing.
    """
    drawn = random.Random(0)
    template, found = [1, *tokens(drawn, 9)], []
    for image in images:
        instruction = tokens(drawn, 8)
        answers = [tokens(drawn, length) for length in (4, 1, 6, 0, 2)]
        found += [sequence(template, instruction, answer=answer, image=image) for answer in answers]
    found.append(sequence([1, *tokens(drawn, 5)], answer=tokens(drawn, 3), image=images[0]))
    drawn.shuffle(found)
    return found


def captions() -> list[Encoded]:
    """Five captions of one picture, two of another, and one sample without."""
    drawn = random.Random(1)
    asked = [1, *tokens(drawn, 12)]
    pictures = [*["one.png"] * 5, *["other.png"] * 2, None]
    return [sequence(asked, answer=tokens(drawn, 3 + place), image=name) for place, name in enumerate(pictures)]


def with_features(batch: Batch, features: int = 32) -> Batch:
    """The batch with random features, the same ones for the same picture."""
    made = {
        path: torch.randn(features, generator=torch.Generator().manual_seed(len(path.name)))
        for path in batch.images
        if path is not None
    }
    return replace(batch, features=tuple(None if path is None else made[path] for path in batch.images))


def learned(model: AdaptedModel, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a training step."""
    model.train()
    model.zero_grad(set_to_none=True)
    loss = model(batch)
    loss.backward()
    found = {item.name: item.parameter.grad for item in model.trainable_parameters()}
    return float(loss.detach()), {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_same(model: AdaptedModel, samples: list[Encoded]) -> None:
    padded, forest = with_features(make_batch(samples, 0)), with_features(make_forest_batch(samples))
    assert forest.supervised_tokens == padded.supervised_tokens
    assert forest.input_ids.numel() < padded.attention_mask.sum()
    loss, gradients = learned(model, padded)
    forest_loss, forest_gradients = learned(model, forest)
    assert forest_loss == pytest.approx(loss, rel=EXACT)
    assert gradients.keys() == forest_gradients.keys() and gradients
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        apart = (forest_gradients[name] - gradient).norm() / max(gradient.norm(), 1e-3 * largest)
        assert apart < EXACT, (name, float(apart), float(gradient.norm()), float(largest))
    with torch.no_grad():
        likelihoods = model.log_likelihood(padded), model.log_likelihood(forest)
    assert torch.allclose(*likelihoods, rtol=EXACT, atol=1e-4)
    assert float(model(forest).detach()) == pytest.approx(loss, rel=EXACT)


@pytest.mark.parametrize("method", ["", "v2_lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_gives_the_same_loss_and_gradients(family, method):
    model = model_on(f"{method} {family}".strip(), images=False)
    for model.activation_checkpointing in (False, True):
        assert_same(model, deep_tree([None, None]))


@pytest.mark.parametrize("method", ["", "v2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_give_the_same_loss_and_gradients(family, method):
    model = model_on(f"{method} {family}".strip())
    assert_same(model, deep_tree(["one.png", None]))
    model.activation_checkpointing = True
    assert_same(model, captions())


def test_the_projection_runs_once_for_five_captions_of_a_picture():
    model, seen = model_on("v2 llama_gqa"), []
    model.adapter.projection.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model(with_features(make_batch(captions(), 0)))
    model(with_features(make_forest_batch(captions())))
    assert seen == [7, 2]


def test_an_attention_that_has_not_heard_of_the_forest_fails(monkeypatch):
    model, batch = model_on("llama_gqa", images=False), make_forest_batch(deep_tree([None]))
    monkeypatch.setattr(AttentionInputs, "forest", None)
    with pytest.raises(RuntimeError):
        model(batch)


def test_a_part_that_adds_keys_without_saying_so_is_refused():
    model, batch = model_on("llama_gqa", images=False), make_forest_batch(deep_tree([None]))
    next(iter(model.adapter["prompts"].values())).settings.attention = "joint"
    with pytest.raises(TypeError, match="follows_forest = False"):
        model(batch)
