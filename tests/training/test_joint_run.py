"""Joint training as `mmadapter train` does it: a real tiny model, captions beside instructions without pictures."""

import contextlib
import io
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.config import validate
from mmadapter.methods.settings import GroupConf
from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.training.preemption import RunStopped
from mmadapter.training.run import run
from tests.training.tiny_run import save_inputs, tiny_conf

STEPS = 11
VISUAL, INSTRUCTION = ["visual_projection", "early_gate"], ["prompt", "gate", "norm", "bias", "scale"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def joint_conf(inputs, runs, *overrides):
    """V2: captions train the visual roles, questions without pictures the rest."""
    conf = tiny_conf(
        inputs,
        runs,
        "adapter=v2_tiny",
        "evaluate=[]",
        "run=joint",
        "data.sources.questions.weight=null",
        "data.sources.captions.weight=null",
        "data.sources.questions.images=false",
        f"optimizer.steps={STEPS}",
        "optimizer.warmup_steps=2",
        "optimizer.clip_norm=0.5",
        "optimizer.micro_batch_size=3",
        "training.validate_every_steps=4",
        *overrides,
    )
    conf.adapter.groups = {
        "visual": GroupConf(roles=VISUAL, sources=["captions"]),
        "instruction": GroupConf(roles=INSTRUCTION, lr_scale=3.0, sources=["questions"]),
    }
    conf.comparison = {}
    validate(conf)
    return conf


def alone_conf(inputs, runs, *overrides):
    """The same without captions at the same actual rate; the visual roles are there, frozen."""
    conf = joint_conf(inputs, runs, "run=alone", *overrides)
    del conf.data.sources["captions"], conf.adapter.groups["visual"]
    conf.data.sources["questions"].samples_per_step = 4
    conf.adapter.frozen = VISUAL
    conf.optimizer.batch_size, conf.optimizer.base_lr = 4, 2 * conf.optimizer.base_lr
    validate(conf)
    return conf


@pytest.fixture(scope="module")
def joint(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run(joint_conf(inputs, runs, "host.activation_checkpointing=true"))
    (runs / "output").write_text(output.getvalue())
    run(alone_conf(inputs, runs, "host.activation_checkpointing=true"))
    return runs / "joint"


def adapter(folder):
    return load_file(folder / "adapter" / "adapter.safetensors")


def is_visual(name):
    return name.startswith(("early_fusion.", "projection."))


def losses(folder, source):
    return [line["loss_by_source"][source] for line in read_metrics(folder / "metrics.jsonl", "train")]


def test_the_instruction_group_equals_the_instruction_only_runs_to_the_bit(joint):
    alone = joint.with_name("alone")
    one, other = adapter(joint), adapter(alone)
    start = load_file(alone / "checkpoints" / "start.safetensors")
    visual = [name for name in one if is_visual(name)]
    assert visual and one.keys() == other.keys() == start.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == visual
    assert [name for name in one if torch.equal(start[name], other[name])] == visual
    assert losses(joint, "questions") == losses(alone, "questions") and len(losses(alone, "questions")) == STEPS


def test_the_projection_has_learned_from_the_captions(joint):
    last = [line["movement"] for line in read_metrics(joint / "metrics.jsonl", "train") if "movement" in line][-1]
    assert last["visual"]["distance"] > 0 and last["instruction"]["distance"] > 0
    assert len(losses(joint, "captions")) == STEPS


def test_the_start_says_what_learns_from_what_and_what_a_step_holds(joint):
    output = joint.with_name("output").read_text()
    rows = [line.split() for line in output.splitlines()]
    sources = {row[0]: row[-1] for row in rows if len(row) == 8 and row[0] in ("visual", "instruction")}
    assert sources == {"visual": "captions", "instruction": "questions"}
    assert "every step holds 4 questions, 4 captions; an epoch is" in output
    rows = json.loads((joint / "trainable.json").read_text())
    assert {row["group"]: row["sources"] for row in rows} == sources


def test_stopped_in_the_middle_and_continued_it_ends_with_the_same_adapter_and_movement(
    inputs, joint, tmp_path, monkeypatch
):
    original = Journal.write

    def write(self, kind, record):
        original(self, kind, record)
        if kind == "train" and record["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "write", write)
    with pytest.raises(RunStopped):
        run(joint_conf(inputs, tmp_path, "host.activation_checkpointing=true"))
    monkeypatch.undo()
    run(joint_conf(inputs, tmp_path, "host.activation_checkpointing=true"))
    one, other = adapter(tmp_path / "joint"), adapter(joint)
    assert all(torch.equal(one[name], other[name]) for name in other)
    moved = [
        [(line["step"], line.get("movement")) for line in read_metrics(folder / "metrics.jsonl") if "step" in line]
        for folder in (tmp_path / "joint", joint)
    ]
    assert [pair for pair in moved[0] if pair[1]] == [pair for pair in moved[1] if pair[1]]


def test_a_step_may_be_mixed_where_all_groups_are_shared(inputs, tmp_path):
    conf = joint_conf(inputs, tmp_path)
    conf.comparison = {}
    for group in conf.adapter.groups.values():
        group.sources = None
    conf.data.sources["questions"].samples_per_step, conf.data.sources["captions"].samples_per_step = 6, 2
    validate(conf)
    run(conf)
    lines = read_metrics(tmp_path / "joint" / "metrics.jsonl", "train")
    assert all(set(line["loss_by_source"]) == {"questions", "captions"} for line in lines)
