"""Every YAML composes into typed settings, and the presets say what the paper says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from mmadapter.config import load_run_config, save_config, validate
from mmadapter.runs.folder import run_folder
from mmadapter.settings import leaves
from tests.config.composing import CONF, choices, eval_conf, run_conf

RUN_GROUPS = ["host", "vision", "adapter", "data", "optimizer", "training", "engine", "cluster"]
EXPERIMENTS = choices("experiment")


@pytest.mark.parametrize("group,name", [(group, name) for group in RUN_GROUPS for name in choices(group)])
def test_every_choice_of_every_group_composes(group, name):
    run_conf(f"{group}={name}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_under_its_own_name(experiment):
    assert run_conf(f"experiment={experiment}").experiment == experiment


@pytest.mark.parametrize("experiment", sorted({*choices("embedded")} - {"none"}))
def test_every_embedded_stand_in_is_for_an_experiment_and_needs_nothing_of_ones_own(experiment):
    conf = run_conf(f"experiment={experiment}", f"embedded={experiment}")
    validate(conf)
    assert conf.experiment == experiment and conf.host.path == "tiny" and conf.data.made is not None
    named = [word.partition("=")[0] for word in conf.embedded.split()]  # what the real thing is given
    real = run_conf(f"experiment={experiment}", *conf.embedded.split())
    assert real.embedded is None and real.host.path == "/models/llama-7b" and "host.path" in named
    assert run_folder(conf).name.startswith(f"{experiment}_embedded-")


@pytest.mark.parametrize("task", choices("task"))
def test_every_task_composes_for_evaluation(task):
    assert eval_conf(f"task={task}").task.name == task


def test_every_file_of_conf_belongs_to_a_group_that_is_tested():
    folders = {file.parent.name for file in CONF.rglob("*.yaml") if file.parent != CONF}
    assert folders <= {*RUN_GROUPS, "experiment", "embedded", "task", "local"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_file_is_global_and_overrides_groups_as_hydra_wants(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert text.startswith("# @package _global_")
    for entry in yaml.safe_load(text).get("defaults", []):
        assert isinstance(entry, str) or next(iter(entry)).startswith(("override /", "/task@tasks."))


def test_the_quick_start_is_the_default_and_compares_host_text_only_and_images():
    conf = run_conf()
    assert conf.experiment == "quickstart"
    assert (conf.host.path, conf.vision.model, conf.data.made) == ("tiny", "tiny", "shapes")
    assert {source.reader for source in conf.data.sources.values()} == {"scienceqa", "coco_captions"}
    assert not conf.comparison["host"].train
    assert not conf.comparison["text_only"].images
    assert conf.comparison["text_only"].sources == ["questions"]


def test_alpaca_has_the_numbers_of_the_paper():
    conf = run_conf("experiment=alpaca")
    optimizer = conf.optimizer
    # null = all but one layer in 16, the paper's 30 of 32 (tests/methods/test_counts.py)
    assert (conf.adapter.methods["prompts"].length, conf.adapter.methods["prompts"].layers) == (10, None)
    assert (optimizer.base_lr, optimizer.weight_decay, optimizer.batch_size) == (9e-3, 0.02, 64)
    assert (optimizer.epochs, optimizer.warmup_epochs, optimizer.betas) == (5, 2, [0.9, 0.95])
    assert conf.host.max_tokens == 512 and not conf.vision.enabled


def test_scienceqa_has_six_scales_of_clip_trains_thirty_epochs_and_keeps_the_splits_apart():
    conf = run_conf("experiment=scienceqa")
    assert conf.vision.model == "ViT-L-14-quickgelu"
    assert len(conf.vision.layers) == 6 and conf.vision.project_scales
    assert (conf.adapter.methods["projection"].kind, conf.adapter.methods["projection"].hidden) == ("mlp", 64)
    assert conf.optimizer.epochs == 30
    splits = (conf.data.sources["questions"].split, conf.data.validation["questions"].split)
    assert (*splits, conf.tasks["scienceqa"].split) == ("train", "val", "test")
    assert conf.evaluate == ["scienceqa"]


def test_scienceqa_text_reads_no_picture_anywhere():
    conf = run_conf("experiment=scienceqa_text")
    readings = [*conf.data.sources.values(), *conf.data.validation.values(), conf.tasks["scienceqa"]]
    assert not conf.vision.enabled and not any(reading.images for reading in readings)


def test_validation_and_task_read_scienceqa_as_the_source_does():
    given = {"prompt_format": "QCM-LEA", "captions": "captions.json", "problems": "p.json", "pid_splits": "few.json"}
    for experiment in ("scienceqa", "scienceqa_text"):
        own = [f"data.sources.questions.{name}={value}" for name, value in given.items()]
        conf = run_conf(f"experiment={experiment}", "data.root=/data", *own)
        for reading in (conf.data.validation["questions"], conf.tasks["scienceqa"]):
            assert {name: getattr(reading, name) for name in given} == given


def test_alpaca_is_evaluated_on_what_it_keeps_out_of_training():
    conf = run_conf("experiment=alpaca", "data.sources.alpaca.path=/a.json")
    assert conf.evaluate == ["instruct"]
    assert (conf.tasks["instruct"].path, conf.tasks["instruct"].split) == ("/a.json", "val")


@pytest.mark.parametrize(("name", "template"), [("llava_instruct", "auto"), ("sharegpt", "auto")])
def test_dialogs_are_validated_as_they_are_learned(name, template):
    own = ["data.root=/pictures", "data.sources.dialogs.path=d.json"]
    data = run_conf(f"data={name}", *own).data
    learned, validated = data.sources["dialogs"], data.validation["dialogs"]
    assert learned.template == validated.template == template and (learned.split, validated.split) == ("train", "val")
    assert replace(validated, split="train") == learned
    assert learned.root == ("/pictures" if name == "llava_instruct" else None)


def test_the_captions_of_the_quick_start_do_not_leak_into_other_experiments():
    assert list(run_conf("experiment=scienceqa").data.sources) == ["questions"]
    assert list(run_conf("experiment=alpaca").data.sources) == ["alpaca"]


def test_a_choice_on_the_command_line_wins_over_the_experiment():
    assert run_conf("experiment=scienceqa", "optimizer=tiny").optimizer.batch_size == 32


def test_saved_settings_come_back_equal_and_resolved(tmp_path):
    conf = run_conf("data.root=elsewhere")
    save_config(conf, tmp_path)
    assert load_run_config(tmp_path) == conf
    assert "${" not in (tmp_path / "config.yaml").read_text()
    assert conf.data.sources["questions"].root == "elsewhere/scienceqa"


def test_dotted_keys_reach_into_named_entries():
    keys = [leaf.key for leaf in leaves(run_conf())]
    assert "data.sources.captions.reader" in keys and "tasks.scienceqa.generation.beams" in keys
