"""Run folders back into models: which folder, which settings, which tensors (whole loading: test_load.py)."""

import json
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


def checkpoint_of(model, folder, change=1.0, **extra):
    tensors = {item.name: item.parameter.detach() + change for item in model.trainable_parameters()}
    (folder / "checkpoints" / "step-000005").mkdir(parents=True)
    save_file({**tensors, **extra}, folder / "checkpoints" / "step-000005" / "trainable.safetensors")
    (folder / "checkpoints" / "last.json").write_text(json.dumps({"step": 5, "folder": "step-000005"}))
    return tensors


def test_an_unfinished_run_gives_the_adapter_of_its_newest_checkpoint(tmp_path):
    model = model_on(images=False)
    tensors = checkpoint_of(model, tmp_path)
    load_checkpoint(model, tmp_path)
    for item in model.trainable_parameters():
        assert torch.equal(item.parameter, tensors[item.name])


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
        load_checkpoint(SimpleNamespace(trainable_parameters=lambda: [one, *others]), tmp_path)
