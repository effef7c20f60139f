"""Runs keep their features in RUNS_ROOT/features: the next run and an evaluation encode nothing again."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmadapter.distributed.ranks import Ranks
from mmadapter.evaluation import evaluate_run
from mmadapter.runs.__main__ import list_runs
from mmadapter.runs.folder import run_folder
from mmadapter.runs.journal import read_metrics
from mmadapter.terminal import Display
from mmadapter.training.run import run
from mmadapter.vision.open_clip import OpenClipEncoder
from tests.config.composing import eval_conf
from tests.training.tiny_run import save_inputs, tiny_conf


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each call of an encoder is given from now on."""
    counts, encode = [], OpenClipEncoder.encode
    monkeypatch.setattr(
        OpenClipEncoder, "encode", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels)
    )
    return counts


def short(inputs, runs, *overrides):
    """A run of a few steps that evaluates one task."""
    conf = tiny_conf(
        inputs, runs, "optimizer.epochs=0.5", "evaluate=[scienceqa]", "tasks.scienceqa.looked_at=0", *overrides
    )
    conf.comparison = {}
    return conf


def adapter(folder):
    return load_file(folder / "adapter" / "adapter.safetensors")


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl", "train")]


def test_a_second_run_and_an_evaluation_encode_nothing_and_no_list_takes_the_features_for_a_run(
    inputs, tmp_path, encoded
):
    first = run(short(inputs, tmp_path))["folder"]
    assert sum(encoded) > 10 and (tmp_path / "features").is_dir()
    encoded.clear()
    second = run(short(inputs, tmp_path, "seed=1"))["folder"]
    evaluate_run(eval_conf("task=scienceqa", f"run={first}", f"runs_root={tmp_path}"), Ranks(), Display())
    evaluate_run(eval_conf("task=scienceqa", f"run={second}"), Ranks(), Display())  # another runs_root
    assert encoded == []
    assert {one.folder for one in list_runs([tmp_path], None)} == {first, second}
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name, "features"}


def test_a_picture_that_has_changed_is_encoded_again_and_no_other(inputs, tmp_path, encoded):
    shutil.copytree(inputs, tmp_path / "inputs")
    run(short(tmp_path / "inputs", tmp_path / "runs"))
    encoded.clear()
    changed = next(iter(sorted((tmp_path / "inputs" / "world").rglob("images/train/*/image.png"))))
    Image.new("RGB", (32, 32), (1, 2, 3)).save(changed)
    run(short(tmp_path / "inputs", tmp_path / "runs", "seed=1"))
    assert encoded == [1]


def test_wherever_the_features_are_kept_it_is_the_same_run_with_the_same_results(inputs, tmp_path, encoded):
    """`auto`, a second time out of the folder, `null`, `false`."""
    folders = []
    for runs, cache in (
        ("auto", "auto"),
        ("again", str(tmp_path / "auto" / "features")),
        ("null", "null"),
        ("no", "false"),
    ):
        conf = short(inputs, tmp_path / runs, f"vision.cache={cache}")
        encoded.clear()
        folders.append(run(conf)["folder"])
        assert (sum(encoded) == 0) == (runs == "again")
        assert (tmp_path / runs / "features").exists() == (runs == "auto")
        assert run_folder(conf).name == folders[0].name
    for folder in folders[1:]:
        assert losses(folder) == losses(folders[0])
        there, here = adapter(folders[0]), adapter(folder)
        assert all(torch.equal(there[name], here[name]) for name in there)
