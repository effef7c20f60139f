"""Whole runs with what only ZeRO does to them: shared hosts that are recomputed, frozen parts, stops and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmadapter.methods.folder import read_card, read_tensors
from mmadapter.methods.settings import GroupConf
from mmadapter.training.run import run
from tests.test_load import opened
from tests.training.launched import adapter, at_step, folder_of, losses, several, short
from tests.training.tiny_run import save_inputs

SUMMATION = {"rel": 2e-6}  # float32 sums in another order
JOINT = (
    "host.activation_checkpointing=true",
    "data.sources.questions.weight=null",
    "data.sources.captions.weight=null",
    "data.sources.questions.images=false",
)
V2 = ("adapter=v2", "adapter.prompts.layers=3")
EVERY_PART = ("adapter.bias_scale.bias=[all]", "adapter.norms.which=all", "adapter.lora.rank=4")
FROZEN = ("gate", "visual_projection", "bias", "scale", "norm", "lora")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (takes 3 s; DeepSpeed wants it at every start)

    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def two_processes(conf, said, stopped_at=None):
    """The run on two processes, through, or stopped by a signal to the first one before a step."""

    def stop(rank):
        if rank == 0 and stopped_at is not None:
            at_step(stopped_at, lambda: os.kill(os.getpid(), signal.SIGTERM))

    group, statuses = several(conf, said, stop)
    assert statuses == [0 if stopped_at is None else 143] * 2, [group.said(rank)[-3000:] for rank in range(2)]


def joint(inputs, runs, engine, settings):
    """Two sources, each of which teaches a group of its own."""
    conf = short(inputs, runs, "run=mine", f"engine.name={engine}", *JOINT, *settings)
    roles = {"v1": ["prompt", "gate"], "v2": ["prompt", "gate", "bias", "scale", "norm"]}["v2" if settings else "v1"]
    pictures = ["visual_projection", *(["early_gate"] if settings else [])]
    conf.adapter.groups = {
        "instruction": GroupConf(roles=roles, sources=["questions"]),
        "visual": GroupConf(roles=pictures, sources=["captions"]),
    }
    return conf


@pytest.mark.parametrize(
    "engine, settings",
    [
        ("zero3", ()),
        *(pytest.param(engine, (), marks=pytest.mark.slow) for engine in ("zero0", "zero2_offload", "zero3_offload")),
        *(pytest.param(engine, V2, marks=pytest.mark.slow) for engine in ("zero3", "zero3_offload")),
    ],
)
def test_a_joint_run_with_checkpointing_goes_on_to_the_bit_where_it_was_stopped(inputs, tmp_path, engine, settings):
    run(joint(inputs, tmp_path / "single", "single", settings))
    two_processes(joint(inputs, tmp_path / "whole", engine, settings), tmp_path / "said")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "single"), **SUMMATION)
    stopped = joint(inputs, tmp_path / "stopped", engine, settings)
    two_processes(stopped, tmp_path / "said", stopped_at=5)
    assert not (tmp_path / "stopped" / "mine" / "finished.json").exists()
    two_processes(stopped, tmp_path / "said")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    one, other = adapter(tmp_path / "stopped"), adapter(tmp_path / "whole")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "engine", ["zero3", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ("zero2", "zero3_offload"))]
)
def test_frozen_parts_stay_whole_and_what_they_were(inputs, tmp_path, engine):
    """All but the prompts; The start is lost on the way."""
    start = tmp_path / "start"

    def conf(runs, engine):
        settings = (*EVERY_PART, f"adapter.frozen=[{','.join(FROZEN)}]", "evaluate=[scienceqa]")
        conf = short(inputs, runs, "run=mine", f"engine.name={engine}", f"adapter.start={start}", *settings)
        conf.adapter.groups = {"prompts": GroupConf(roles=["prompt"])}
        return conf

    made = short(inputs, tmp_path, *EVERY_PART, "engine.name=single")
    opened(made).save(start)
    run(conf(tmp_path / "single", "single"))
    two_processes(conf(tmp_path / "runs", engine), tmp_path / "said", stopped_at=5)
    shutil.rmtree(start)
    two_processes(conf(tmp_path / "runs", engine), tmp_path / "said")
    one, other = folder_of(tmp_path / "runs"), folder_of(tmp_path / "single")
    assert losses(tmp_path / "runs") == pytest.approx(losses(tmp_path / "single"), **SUMMATION)
    tensors, there = (read_tensors(folder / "adapter", read_card(folder / "adapter")) for folder in (one, other))
    assert tensors.keys() == there.keys() and any("lora" in name for name in tensors)
    trained = [name for name in tensors if not torch.equal(tensors[name], there[name])]
    assert trained and all("prompt" in name for name in trained)
    assert all(torch.allclose(tensors[name], there[name], rtol=1e-4, atol=1e-5) for name in trained)
    assert answered(one) == answered(other)


def answered(folder):
    """What it generated, and what it thought the likeliest option."""
    lines = (folder / "eval" / "scienceqa" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_shared_host_has_the_digest_that_one_process_sees_and_another_one_is_refused(inputs, tmp_path):
    """No process holds the matrices of which the digest is made."""
    length = ("run=mine", "optimizer.epochs=0.2")
    run(short(inputs, tmp_path / "one", *length, "engine.name=single"))
    two_processes(short(inputs, tmp_path / "two", *length, "engine.name=zero3"), tmp_path / "said")
    cards = [read_card(tmp_path / name / "mine" / "adapter") for name in ("one", "two")]
    digests = [card["host"]["weights_digest"] for card in cards]
    assert digests[0] == digests[1] and len(digests[0]) == 16

    (tmp_path / "two" / "mine" / "finished.json").unlink()
    other = tmp_path / "other" / "host"
    shutil.copytree(inputs / "host", other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: one * 1.01 for name, one in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    conf = short(inputs, tmp_path / "two", *length, "engine.name=zero3", f"host.path={other}")
    group, statuses = several(conf, tmp_path / "said")
    told = f"made on a host with other weights (weights_digest {digests[0]}, here "
    assert statuses == [2, 2] and told in group.said(0), group.said(0)[-2000:]
