"""A run folder is EXPERIMENT-DIGEST; the digest follows what changes the result, and nothing else (decision 10)."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields

import pytest

from mmadapter.config import RunConf, load_run_config, save_config, with_overrides
from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.runs.folder import FINISHED_FILE, is_finished, result_settings, run_folder, settings_digest
from tests.config.composing import run_conf


@pytest.fixture(scope="module")
def quickstart() -> RunConf:
    return run_conf()


@pytest.fixture
def conf(quickstart, tmp_path) -> RunConf:
    copy = deepcopy(quickstart)
    copy.runs_root = str(tmp_path / "runs")
    return copy


WITHOUT_INFLUENCE = [
    "run=other", "runs_root=/elsewhere", "resume=never", "threads=7", "dry_run=true", "engine.device=cuda",
    "host.activation_checkpointing=true", "vision.cache=/cache", "training.save_every_steps=5",
    "training.keep_checkpoints=9", "training.log_every_steps=3", "training.tensorboard=false", "training.wandb=true",
    "data.root=/moved/to/shapes", "vision.workers=2", "launch.processes=4",
    "optimizer.micro_batch_size=16", "optimizer.micro_batch_tokens=99",
    "optimizer.max_nonfinite_steps=3", "tasks.scienceqa.batch_size=8",
]  # fmt: skip
WITH_INFLUENCE = [
    "seed=1", "host.dtype=bfloat16", "host.max_tokens=100", "vision.layers=[1]", "adapter.prompts.layers=2",
    "adapter.projection.hidden=8", "adapter.start=runs/other", "adapter.norms.which=all", "adapter.bias_scale.bias=[q]",
    "adapter.prompts.attention=joint", "adapter.groups.adapter.lr_scale=2", "data.sources.questions.limit=10",
    "data.sources.captions.template=plain", "data.root=/other/world", "optimizer.epochs=9",
    "optimizer.clip_norm=2", "training.validate_every_steps=7",
    "tasks.scienceqa.limit=3", "evaluate=[scienceqa]",
    "host.path=/models/another", "host.quantization=int8",
]  # fmt: skip


@pytest.mark.parametrize("override", WITHOUT_INFLUENCE)
def test_what_changes_no_number_leaves_the_digest(quickstart, override):
    changed = with_overrides(quickstart, [override], "test")
    assert changed != quickstart
    if override.startswith("data.root"):  # composed, the roots of the sources follow it
        changed = run_conf(override)
    assert settings_digest(changed) == settings_digest(quickstart)


@pytest.mark.parametrize("override", WITH_INFLUENCE)
def test_what_changes_a_number_changes_the_digest(quickstart, override):
    assert settings_digest(with_overrides(quickstart, [override], "test")) != settings_digest(quickstart)


def test_a_task_that_is_not_evaluated_does_not_count(quickstart):
    text = with_overrides(quickstart, ["evaluate=[]"], "test")
    assert settings_digest(with_overrides(text, ["tasks.coco_caption.limit=9"], "test")) == settings_digest(text)


def test_the_digest_is_eight_hex_digits_and_the_same_in_another_process(quickstart, checkout):
    code = "from tests.config.composing import run_conf; from mmadapter.runs.folder import settings_digest; "
    other = subprocess.run(
        [sys.executable, "-c", code + "print(settings_digest(run_conf()))"],
        capture_output=True, text=True, cwd=checkout, env={"PYTHONHASHSEED": "7", "PATH": ""},
    )  # fmt: skip
    digest = settings_digest(quickstart)
    assert len(digest) == 8 and int(digest, 16) >= 0
    assert other.stdout.strip() == digest, other.stderr


def test_another_host_in_a_folder_of_the_same_name_is_another_run(quickstart, tmp_path):
    digests = set()
    for place, layers in (("a", 8), ("b", 8), ("c", 16)):
        folder = tmp_path / place / "llama"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        digests.add(settings_digest(with_overrides(quickstart, [f"host.path={folder}"], "test")))
    assert len(digests) == 2


def test_the_same_settings_give_the_same_folder_and_others_another(conf):
    first = run_folder(conf)
    assert first == run_folder(conf) and first.name == f"quickstart-{settings_digest(conf)}"
    assert run_folder(with_overrides(conf, ["seed=3"], "test")) != first
    assert not first.exists()


def test_the_folder_stays_the_same_when_the_run_has_begun_and_when_it_is_finished(conf):
    folder = run_folder(conf)
    save_config(conf, folder)
    assert run_folder(conf) == folder and not is_finished(folder, conf)
    write_json(folder / FINISHED_FILE, {"accuracy": 50.0})
    assert run_folder(conf) == folder and is_finished(folder, conf)


def test_resume_never_takes_an_unused_folder(conf):
    folder = run_folder(conf)
    conf.resume = "never"
    assert run_folder(conf) == folder
    save_config(conf, folder)
    assert run_folder(conf).name == f"{folder.name}-2"


def test_run_names_a_folder_under_runs_root_or_a_path(conf, tmp_path):
    conf.run = "first"
    assert run_folder(conf) == tmp_path / "runs" / "first"
    conf.run = str(tmp_path / "place" / "first")
    assert run_folder(conf) == tmp_path / "place" / "first"


def test_run_continues_in_a_folder_of_the_same_settings(conf):
    conf.run = "first"
    save_config(conf, run_folder(conf))
    conf.threads, conf.training.keep_checkpoints = 1, 5
    assert run_folder(conf).name == "first"


def test_run_refuses_a_folder_of_other_settings_and_says_which(conf):
    conf.run = "first"
    save_config(conf, run_folder(conf))
    changed = with_overrides(conf, ["seed=5", "optimizer.epochs=9"], "test")
    with pytest.raises(InputError) as refused:
        run_folder(changed)
    message = str(refused.value)
    assert "seed: 0 -> 5" in message and f"optimizer.epochs: {conf.optimizer.epochs} -> 9.0" in message
    assert "host.path" not in message


def test_run_refuses_a_folder_with_other_content_and_one_that_may_not_continue(conf, tmp_path):
    conf.run = str(tmp_path / "letters")
    (tmp_path / "letters").mkdir()
    assert run_folder(conf) == tmp_path / "letters"
    (tmp_path / "letters" / "dear.txt").write_text("...")
    with pytest.raises(InputError, match="no run folder"):
        run_folder(conf)
    conf.run, conf.resume = "second", "never"
    save_config(conf, run_folder(conf))
    with pytest.raises(InputError, match="resume=never"):
        run_folder(conf)


def test_a_broken_config_file_is_told_by_name(conf, tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="config.yaml cannot be read as YAML"):
        load_run_config(tmp_path)
    with pytest.raises(InputError, match="no config.yaml"):
        load_run_config(tmp_path / "nowhere")


def test_an_interrupted_save_keeps_the_settings_before_it(conf, tmp_path, monkeypatch):
    save_config(conf, tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("stopped")))
    conf.seed = 8
    with pytest.raises(OSError, match="stopped"):
        save_config(conf, tmp_path)
    assert (tmp_path / "config.yaml").read_text() == before


def test_every_setting_is_either_in_the_digest_or_named_here(quickstart):
    kept = {key.split(".")[0] for key in result_settings(quickstart)}
    outside = {"embedded", "run", "runs_root", "resume", "threads", "dry_run", "engine", "launch", "cluster", "sweep"}
    assert kept | outside == {item.name for item in fields(RunConf)}


def test_a_setting_that_came_later_renames_only_the_runs_that_use_it():
    assert "host.quantization" not in result_settings(run_conf())
    assert result_settings(run_conf("host.quantization=int8"))["host.quantization"] == "int8"
