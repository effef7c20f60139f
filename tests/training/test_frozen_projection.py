"""A run that trains no part of its query transformer: each picture goes through it once, and the run is the same."""

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.methods.projection import QueryTransformer
from mmadapter.model import AdaptedModel
from mmadapter.runs.journal import read_metrics
from mmadapter.training.run import run
from tests.training.tiny_run import save_inputs, tiny_conf

PROJECTION = "{kind: query_transformer, hidden: 8, tokens: 10, blocks: 2, heads: 2}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def pictures_read(monkeypatch):
    """How many pictures each call of `QueryTransformer.read` has had."""
    seen, read = [], QueryTransformer.read
    monkeypatch.setattr(QueryTransformer, "read", lambda self, tokens: seen.append(len(tokens)) or read(self, tokens))
    return seen


def finished(inputs, runs, frozen):
    """Losses of the steps, the adapter's tensors and the answers of a finished run of two epochs."""
    words = ["vision.tokens=all", "vision.layers=[2]", f"adapter.projection={PROJECTION}", "training.watch_samples=2"]
    words += [f"tasks.{name}.looked_at=0" for name in ("scienceqa", "coco_caption")]
    words += ["adapter.frozen=[visual_projection]", "~adapter.groups.images"] * frozen
    folder = run(tiny_conf(inputs, runs, *words, "comparison={}"))["folder"]
    losses = [line["loss"] for line in read_metrics(folder / "metrics.jsonl", "train")]
    answers = [(folder / "eval" / name / "predictions.jsonl").read_text() for name in ("scienceqa", "coco_caption")]
    return losses, load_file(folder / "adapter" / "adapter.safetensors"), answers


def test_each_picture_is_read_once_and_nothing_else_changes(inputs, tmp_path, monkeypatch, pictures_read):
    losses, adapter, answers = finished(inputs, tmp_path / "once", frozen=True)
    assert set(pictures_read) == {1} and len(pictures_read) < 60  # the made world has so many pictures
    once = len(pictures_read)

    monkeypatch.setattr(AdaptedModel, "read_pictures_once", lambda self: None)
    every_losses, every_adapter, every_answers = finished(inputs, tmp_path / "every", frozen=True)
    assert sum(pictures_read[once:]) > 2 * once
    assert losses == pytest.approx(every_losses, rel=1e-5) and answers == every_answers
    assert all(torch.allclose(adapter[name], every_adapter[name], atol=1e-4) for name in every_adapter)
    assert any(name.startswith("projection.blocks") for name in adapter)


def test_a_projection_that_trains_reads_in_every_step(inputs, tmp_path, pictures_read):
    finished(inputs, tmp_path, frozen=False)
    assert max(pictures_read) > 1
