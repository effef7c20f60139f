"""Run folders back into assistants: which folder, which settings, which adapter."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mmadapter.config import EvalConf, RunConf, TaskConf, save_config
from mmadapter.errors import InputError
from mmadapter.evaluation.recreate import task_of_run
from mmadapter.evaluation.run import results_name
from mmadapter.rebuild import conf_of_run, load_checkpoint, run_folder
from tests.assistants import assistant_on


def test_a_run_is_named_by_path_or_by_its_name_under_runs_root(tmp_path):
    save_config(RunConf(), tmp_path / "runs" / "one")
    assert run_folder(str(tmp_path / "runs" / "one"), "elsewhere") == tmp_path / "runs" / "one"
    assert run_folder("one", str(tmp_path / "runs")) == tmp_path / "runs" / "one"
    with pytest.raises(InputError, match="run=two: neither two nor"):
        run_folder("two", str(tmp_path / "runs"))


def test_the_evaluation_overrides_where_the_weights_lie_and_nothing_else(tmp_path):
    kept = RunConf()
    kept.host.path, kept.host.attention, kept.adapter.layers = "/old/host", "eager", 7
    save_config(kept, tmp_path)
    wanted = EvalConf()
    wanted.host.path = "/new/host"
    conf = conf_of_run(tmp_path, wanted)
    assert (conf.host.path, conf.host.attention, conf.adapter.layers) == ("/new/host", "eager", 7)


def checkpoint_of(assistant, folder, change=1.0, **extra):
    tensors = {item.name: item.parameter.detach() + change for item in assistant.trainable()}
    (folder / "checkpoints" / "step-000005").mkdir(parents=True)
    save_file({**tensors, **extra}, folder / "checkpoints" / "step-000005" / "trainable.safetensors")
    (folder / "checkpoints" / "last.json").write_text(json.dumps({"step": 5, "folder": "step-000005"}))
    return tensors


def test_an_unfinished_run_gives_the_adapter_of_its_newest_checkpoint(tmp_path):
    assistant = assistant_on(images=False)
    tensors = checkpoint_of(assistant, tmp_path)
    load_checkpoint(assistant, tmp_path)
    for item in assistant.trainable():
        assert torch.equal(item.parameter, tensors[item.name])


def test_a_run_without_any_checkpoint_and_one_that_does_not_fit_are_refused(tmp_path):
    assistant = assistant_on(images=False)
    with pytest.raises(InputError, match="neither an adapter/ nor a checkpoint"):
        load_checkpoint(assistant, tmp_path)
    checkpoint_of(assistant, tmp_path, stray=torch.zeros(1))
    with pytest.raises(InputError, match="does not fit the run's settings.*stray"):
        load_checkpoint(assistant, tmp_path)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    assistant = assistant_on(images=False)
    name = assistant.trainable()[0].name
    checkpoint_of(assistant, tmp_path, **{})
    one = SimpleNamespace(name=name, parameter=torch.zeros(3))
    others = assistant.trainable()[1:]
    with pytest.raises(InputError, match=f"{name}: its shape is"):
        load_checkpoint(SimpleNamespace(trainable=lambda: [one, *others]), tmp_path)


def test_a_quick_look_at_a_few_questions_does_not_replace_the_runs_scores():
    own = TaskConf(name="scienceqa", split="test")
    assert results_name(TaskConf(name="scienceqa", split="test"), own) == "scienceqa"
    assert results_name(TaskConf(name="scienceqa", split="test", limit=20), own) == "scienceqa-first-20"
    assert results_name(TaskConf(name="scienceqa", split="val"), own) == "scienceqa-val"
    looked_at = TaskConf(name="coco_caption", limit=3)
    assert results_name(looked_at, looked_at) == "coco_caption"


def test_other_settings_do_not_replace_the_runs_scores_and_other_places_do(tmp_path):
    own, task = (TaskConf(name="instruct", path="/old/items.json", root="/old") for _ in range(2))
    task.path, task.root, task.generation.beams = "/new/items.json", "/new", 4
    assert results_name(task, own, ["path", "root"]) == "instruct"
    task.path = "/my/own.json"
    assert results_name(task, own, ["generation.beams", "path"]) == "instruct-beams-4-path-own"
    assert results_name(task, None, ["generation.beams"]) == "instruct-beams-4"


def test_a_run_is_asked_as_its_own_task_says_but_for_what_the_command_line_gives():
    own = TaskConf(name="scienceqa", root="/data", prompt_format="QCM-EA", likelihood=False, limit=9)
    own.generation.max_new_tokens = 24
    asked = TaskConf(name="scienceqa", prompt_format="QCM-A", limit=None)
    asked.generation.beams = 4
    task = task_of_run(asked, own, ["generation.beams", "limit"])
    assert (task.root, task.prompt_format, task.likelihood, task.limit) == ("/data", "QCM-EA", False, None)
    assert (task.generation.max_new_tokens, task.generation.beams, own.generation.beams) == (24, 4, 1)
    assert task_of_run(asked, None, []) is asked
