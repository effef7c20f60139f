"""training.layout: whole runs whose batches are forests. They learn what padded ones learn, and resume to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.hosts.families import FAMILIES
from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.training.preemption import RunStopped
from mmadapter.training.run import layout_of, run
from tests.models import model_on
from tests.training.launched import adapter, folder_of, losses, several, short
from tests.training.tiny_run import save_inputs

FOREST, PADDED = "training.layout=forest", "training.layout=padded"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def conf_of(inputs, runs, *overrides):
    conf = short(inputs, runs, *overrides)
    conf.engine.name = "single"
    return conf


@pytest.fixture(scope="module")
def padded(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("padded")
    run(conf_of(inputs, runs, PADDED))
    return runs


@pytest.fixture(scope="module")
def forest(inputs, tmp_path_factory):
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (for the processes that are forked later)

    runs = tmp_path_factory.mktemp("forest")
    run(conf_of(inputs, runs, FOREST))
    return runs


def assert_same_up_to_rounding(one, other):
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    mine, theirs = adapter(one), adapter(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-4) for name in mine)


def test_a_run_in_forests_is_the_padded_run_up_to_rounding_in_the_same_folder(padded, forest):
    assert folder_of(padded).name == folder_of(forest).name
    assert losses(padded) != losses(forest)
    assert_same_up_to_rounding(forest, padded)
    validated = [
        [line["loss"] for line in read_metrics(folder_of(runs) / "metrics.jsonl", "validation")]
        for runs in (padded, forest)
    ]
    assert validated[0] and validated[1] == pytest.approx(validated[0], rel=1e-5)


@pytest.mark.parametrize("engine", ["zero1", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_processes_train_what_one_trains(inputs, forest, tmp_path, engine):
    conf = short(inputs, tmp_path / "runs", FOREST, f"engine.name={engine}")
    group, statuses = several(conf, tmp_path / "said")
    assert statuses == [0, 0], group.said(0) + group.said(1)
    assert_same_up_to_rounding(tmp_path / "runs", forest)


def stop_at_step_5(monkeypatch, conf):
    original = Journal.write

    def write(self, kind, record):
        original(self, kind, record)
        if kind == "train" and record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(RunStopped):
        patched.setattr(Journal, "write", write)
        run(conf)


def assert_same_to_the_bit(one, other):
    mine, theirs = adapter(one), adapter(other)
    assert losses(one) == losses(other) and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_by_default_a_run_takes_forests_says_so_and_goes_on_to_the_bit_after_a_stop(
    inputs, forest, tmp_path, monkeypatch, capsys
):
    stop_at_step_5(monkeypatch, conf_of(inputs, tmp_path))
    assert "layout: forest (what samples of a micro-batch begin with alike" in capsys.readouterr().out
    run(conf_of(inputs, tmp_path))
    assert "layout: forest" in capsys.readouterr().out
    assert layout_resumed(tmp_path) == "forest"
    assert_same_to_the_bit(tmp_path, forest)


def layout_resumed(runs):
    """The layout in which a run went on, of its journal."""
    events = read_metrics(folder_of(runs) / "metrics.jsonl", "event")
    (layout,) = [event["layout"] for event in events if event["event"] == "resumed"]
    return layout


def forget_the_layout(runs):
    """Makes the checkpoints those of an earlier version."""
    for file in folder_of(runs).glob("checkpoints/step-*/state.json"):
        content = json.loads(json.loads(file.read_text())["body"])
        del content["position"]["layout"]
        body = json.dumps(content)
        file.write_text(json.dumps({"digest": hashlib.sha256(body.encode()).hexdigest(), "body": body}))


def test_a_run_from_before_there_were_layouts_stays_padded_to_the_bit(inputs, padded, tmp_path, monkeypatch, capsys):
    stop_at_step_5(monkeypatch, conf_of(inputs, tmp_path, PADDED))
    forget_the_layout(tmp_path)
    run(conf_of(inputs, tmp_path))
    assert "layout: padded, as this run began" in capsys.readouterr().out
    assert layout_resumed(tmp_path) == "padded"
    assert_same_to_the_bit(tmp_path, padded)


def test_named_a_layout_changes_in_the_middle_of_a_run(inputs, padded, tmp_path, monkeypatch):
    stop_at_step_5(monkeypatch, conf_of(inputs, tmp_path, PADDED))
    run(conf_of(inputs, tmp_path, FOREST))
    assert layout_resumed(tmp_path) == "forest" and losses(tmp_path)[:5] == losses(padded)[:5]
    assert_same_up_to_rounding(tmp_path, padded)


def test_where_a_forest_would_not_be_exact_auto_pads_and_a_forest_is_refused(monkeypatch):
    joint = model_on("llama_gqa", images=False)
    for layer in joint.adapter["prompts"].values():
        layer.settings.attention = "joint"
    dropping = model_on("llama_gqa", images=False)
    dropping.adapter["more"] = torch.nn.Dropout(0.1)
    other = model_on("gpt_neox", images=False)
    monkeypatch.setitem(FAMILIES, "gpt_neox", replace(FAMILIES["gpt_neox"], forest=False))
    reasons = {
        joint: "PromptLayer at the attention of layer 2 does not know forests",
        dropping: "dropout draws other numbers for other batches",
        other: "hosts of type gpt_neox may know of positions in other ways than rotary ones",
    }
    for model, reason in reasons.items():
        assert layout_of("padded", model, "cpu") == ("padded", "")
        assert layout_of("auto", model, "cpu") == ("padded", f"layout: padded, for {reason}")
        with pytest.raises(InputError, match=f"training.layout=forest: {reason}. Set training.layout=padded"):
            layout_of("forest", model, "cpu")
    exact = model_on("v2 qwen3")
    assert [layout_of(asked, exact, device)[0] for asked in ("auto", "forest") for device in ("cpu", "cuda")] == [
        *("forest", "padded"),
        *("forest", "forest"),
    ]


def test_tokens_that_cut_a_micro_batch_change_a_run_by_no_more_than_rounding(inputs, forest, tmp_path):
    run(conf_of(inputs, tmp_path, "optimizer.micro_batch_tokens=40"))
    assert losses(tmp_path) != losses(forest)  # other sums: so it was cut
    assert_same_up_to_rounding(tmp_path, forest)
