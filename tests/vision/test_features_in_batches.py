"""Batches carry the features of their pictures: the model itself opens no file, in training, scoring and generating."""

from __future__ import annotations

import builtins
import io
import json
import os
from dataclasses import replace

import pytest
import torch

from mmadapter.data.batches import FeaturedBatches
from mmadapter.data.mixture import StepShape
from mmadapter.data.samples import ANSWER, Segment
from mmadapter.data.settings import DataConf, LlavaSettings
from mmadapter.data.tokens import SampleEncoder
from mmadapter.data.training import RunData, read_samples
from mmadapter.distributed.ranks import Ranks
from mmadapter.tasks.asking import generate_answers, most_likely_options
from mmadapter.tasks.settings import ScienceqaTaskSettings
from mmadapter.vision import images
from mmadapter.vision.features import FeatureStore, PixelReader
from tests.models import batch_of, model_on, picture, sample


@pytest.fixture
def no_files(monkeypatch):
    """From the call on no file is opened, and no picture is read."""

    def refused(*arguments, **keywords):
        raise AssertionError(f"a file is opened: {arguments}")

    def refuse():
        for owner, name in ((builtins, "open"), (io, "open"), (os, "open"), (images, "image_content")):
            monkeypatch.setattr(owner, name, refused)
        monkeypatch.setattr("mmadapter.vision.features.image_content", refused)

    return refuse


def data_of(folder, store):
    """A run's data: six captions in training, two in validation, each with a picture of its own."""
    items = []
    for number in range(8):
        picture(folder, number)
        turns = [{"from": "human", "value": "<image>\nwhat is red"}, {"from": "gpt", "value": f"red {number}"}]
        items.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    for name, part in (("train", items[:6]), ("val", items[6:])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    conf = DataConf(
        sources={"captions": LlavaSettings(root=str(folder), path="train.json", split="all")},
        validation={"captions": LlavaSettings(root=str(folder), path="val.json", split="all")},
    )
    samples, encoder = read_samples(conf, images=True, seed=0), SampleEncoder(model_on().tokenizer, 64)
    data = RunData(conf, samples, encoder, StepShape(4, 2, seed=0), {})
    data.features = store
    return data


@pytest.mark.parametrize("cached", [False, True])
def test_a_step_and_a_validation_open_no_file_once_the_pictures_are_prepared(tmp_path, no_files, cached):
    model = model_on()
    if cached:
        model.features = FeatureStore(model.vision, tmp_path / "cache")
    data = data_of(tmp_path, model.features)
    store = model.features
    store.add(data.image_paths())
    for path in data.image_paths():
        path.unlink()
    no_files()
    model.train()
    for batch in [*data.step_batches(0), *data.validation]:
        assert all(feature.shape == (32,) for feature in batch.features)
        model.zero_grad()
        model(batch).backward()
        assert any(p.grad is not None and p.grad.any() for p in model.adapter["projection"].parameters())


def test_pixels_in_the_batch_give_the_same_losses_and_gradients_and_the_forward_opens_no_file(tmp_path, no_files):
    """`vision.cache=false`."""
    results, model = [], model_on(gates=2.0)
    stores = [model.features, PixelReader(model.vision)]
    model.train()
    steps = [[*data.step_batches(0), *data.validation] for data in (data_of(tmp_path, store) for store in stores)]
    assert [batch.features[0].ndim for batches in steps for batch in batches[:1]] == [1, 3]
    no_files()
    for batches in steps:
        model.zero_grad()
        losses = [model(batch) for batch in batches]
        sum(losses).backward()
        results.append(torch.stack([*losses, *(p.grad.sum() for p in model.adapter["projection"].parameters())]))
    assert torch.equal(*results)


def test_features_in_the_batch_give_what_pictures_looked_up_row_by_row_give(tmp_path):
    model, one = model_on(gates=2.0), picture(tmp_path, 1)
    rows = [sample("what is red", "red", one), sample("what colour is the circle", "blue")]
    batch = batch_of(model, rows)
    assert torch.equal(batch.features[0], model.features.feature(one)) and batch.features[1] is None
    with torch.no_grad():
        looked_up = model(replace(batch, features=(model.features.feature(one), None)))
        assert torch.equal(model(batch), looked_up)
        assert not torch.equal(model(replace(batch, features=(None, None))), looked_up)


def test_answers_and_likelihoods_open_no_file_once_the_pictures_are_prepared(tmp_path, no_files):
    model = model_on()
    asked = [sample("what is red", image=picture(tmp_path, seed), id=str(seed)) for seed in range(3)]
    model.features.add([one.image for one in asked])
    for one in asked:
        one.image.unlink()
    no_files()
    task = ScienceqaTaskSettings(batch_size=2)
    task.generation.max_new_tokens = 2
    assert len(generate_answers(model, asked, task, Ranks())) == 3
    options = [[(Segment(text, ANSWER),) for text in (" red", " blue")]] * 3
    assert len(most_likely_options(model, asked, options, task, Ranks())) == 3


def test_validation_batches_get_their_features_when_they_are_asked_for(tmp_path):
    model = model_on()
    store = FeatureStore(model.vision, memory_limit_bytes=1)
    batches = [batch_of(model_on(images=False), [sample("red", "red", picture(tmp_path, seed))]) for seed in (1, 2)]
    lazy = FeaturedBatches(batches, store)
    (tmp_path / "1.png").unlink()
    assert len(lazy) == 2 and len(lazy[1:]) == 1 and lazy[1:][0].features[0].shape == (32,)
    assert FeaturedBatches(batches, None)[0].features is None
