"""Run folders back into models: which folder, which settings, which tensors (whole loading: test_load.py)."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mmadapter.config import EvalConf, RunConf, save_config
from mmadapter.errors import InputError
from mmadapter.methods.settings import PromptsConf
from mmadapter.runs.folder import find_run
from mmadapter.runs.model import load_checkpoint, settings_of_run
from mmadapter.training.checkpoint import CheckpointFolder, Position, Snapshot
from mmadapter.training.engine import EngineState
from tests.models import model_on


def test_a_run_is_named_by_path_or_by_its_name_under_runs_root(tmp_path):
    save_config(RunConf(), tmp_path / "runs" / "one")
    assert find_run(str(tmp_path / "runs" / "one"), "elsewhere") == tmp_path / "runs" / "one"
    assert find_run("one", str(tmp_path / "runs")) == tmp_path / "runs" / "one"
    with pytest.raises(InputError, match="run=two: no run folder"):
        find_run("two", str(tmp_path / "runs"))


def test_the_evaluation_overrides_where_the_weights_lie_and_nothing_else(tmp_path):
    kept = RunConf()
    kept.host.path, kept.host.attention = "/old/host", "eager"
    kept.adapter.methods["prompts"] = PromptsConf(layers=7)
    save_config(kept, tmp_path)
    wanted = EvalConf()
    wanted.host.path = "/new/host"
    conf = settings_of_run(tmp_path, wanted)
    assert (conf.host.path, conf.host.attention, conf.adapter) == ("/new/host", "eager", kept.adapter)


def checkpoint_of(model, folder, change=1.0, step=5, host_weights="", **extra):
    tensors = {item.name: item.parameter.detach() + change for item in model.trainable_parameters()}
    state = EngineState({**tensors, **extra}, {"exp_avg": {}, "exp_avg_sq": {}}, {}, step)
    CheckpointFolder(folder / "checkpoints").save(
        Snapshot(Position(step=step, host_weights=host_weights), state, {"torch": torch.zeros(1)}, {})
    )
    return tensors


def test_an_unfinished_run_gives_the_adapter_of_its_newest_checkpoint(tmp_path):
    model = model_on(images=False)
    tensors = checkpoint_of(model, tmp_path)
    load_checkpoint(model, tmp_path)
    for item in model.trainable_parameters():
        assert torch.equal(item.parameter, tensors[item.name])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_one_flipped_bit_of_the_newest_checkpoint_is_never_scored(tmp_path, caplog):
    """Training would pass it over, and so does an evaluation; the run's folder stays as it is."""
    model = model_on(images=False)
    earlier = checkpoint_of(model, tmp_path, 1.0, step=4)
    checkpoint_of(model, tmp_path, 2.0, step=8)
    flip_a_bit(tmp_path / "checkpoints" / "step-000008" / "trainable.safetensors")
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    load_checkpoint(model, tmp_path)
    for item in model.trainable_parameters():
        assert torch.equal(item.parameter, earlier[item.name])
    assert "step-000008 is damaged (trainable.safetensors does not match its digest); the one before" in caplog.text
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    flip_a_bit(tmp_path / "checkpoints" / "step-000004" / "optimizer.safetensors")
    with pytest.raises(InputError, match=r"(?s)No checkpoint can be read:.*step-000008.*step-000004"):
        load_checkpoint(model, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"body": "{}", "digest": 5}', None])
def test_a_broken_state_file_is_named(content, tmp_path):
    model = model_on(images=False)
    checkpoint_of(model, tmp_path)
    file = tmp_path / "checkpoints" / "step-000005" / "state.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=r"(?s)No checkpoint can be read:.*step-000005 is damaged"):
        load_checkpoint(model, tmp_path)


def test_a_checkpoint_of_another_format_or_of_another_host_is_refused(tmp_path, monkeypatch):
    model = model_on(images=False)
    checkpoint_of(model, tmp_path, host_weights="0123456789abcdef")
    load_checkpoint(model, tmp_path)  # this host was made in memory: its weights have no digest
    model.host.weights_digest = "fedcba9876543210"
    with pytest.raises(InputError, match=r"a host with other weights .weights_digest 0123456789abcdef, here fedcba98"):
        load_checkpoint(model, tmp_path)
    monkeypatch.setattr("mmadapter.training.checkpoint.FORMAT", 99)
    checkpoint_of(model, tmp_path, step=6)
    with pytest.raises(InputError, match=r"step-000006 was written by another version .* format 99 .here 1"):
        load_checkpoint(model, tmp_path)


def test_a_start_that_frozen_parts_need_and_that_has_changed_is_refused(tmp_path):
    model = model_on(images=False)
    checkpoint_of(model, tmp_path)
    save_file({"frozen": torch.ones(2)}, tmp_path / "checkpoints" / "start.safetensors")
    with pytest.raises(InputError, match=r"start\.safetensors, what the run started from, is damaged"):
        load_checkpoint(model, tmp_path)


def test_a_run_without_any_checkpoint_and_one_that_does_not_fit_are_refused(tmp_path):
    model = model_on(images=False)
    with pytest.raises(InputError, match="neither an adapter/ nor a checkpoint"):
        load_checkpoint(model, tmp_path)
    checkpoint_of(model, tmp_path, stray=torch.zeros(1))
    with pytest.raises(InputError, match="does not fit the run's settings.*stray"):
        load_checkpoint(model, tmp_path)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    model = model_on(images=False)
    name = model.trainable_parameters()[0].name
    checkpoint_of(model, tmp_path, **{})
    one = SimpleNamespace(name=name, parameter=torch.zeros(3))
    others = model.trainable_parameters()[1:]
    with pytest.raises(InputError, match=re.escape(f"{name} ") + ".* -> \\(3,\\)"):
        load_checkpoint(SimpleNamespace(host=None, trainable_parameters=lambda: [one, *others]), tmp_path)
