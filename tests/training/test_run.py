"""Whole runs on random tiny models: what `mmadapter train` does from settings to the final table."""

import json
import os
import shlex
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.config import save_config
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.methods.settings import GroupConf
from mmadapter.runs.attempt import attempt
from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.runs.versions import versions
from mmadapter.training.preemption import RunStopped
from mmadapter.training.run import run
from tests.training.tiny_run import save_inputs, tiny_conf

FILES = [
    *(
        "config.yaml",
        "versions.json",
        "trainable.json",
        "metrics.jsonl",
        "summary.json",
        "finished.json",
        "report.html",
    ),
    *("adapter/adapter.safetensors", "adapter/adapter.json", "checkpoints/last.json", "checkpoints/best.json"),
    *("eval/scienceqa/metrics.json", "eval/scienceqa/predictions.jsonl", "eval/coco_caption/predictions.jsonl"),
    *("comparison/host/eval/scienceqa/metrics.json", "comparison/text_only/adapter/adapter.safetensors"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """(run folder, summary) of an undisturbed quick start."""
    runs = tmp_path_factory.mktemp("runs")
    summary = run(tiny_conf(inputs, runs))
    return only_folder(runs), summary


def short(inputs, runs, *overrides):
    """A run without evaluation and comparison."""
    conf = tiny_conf(inputs, runs, "evaluate=[]", *overrides)
    conf.comparison = {}
    return conf


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl", "train")]


def only_folder(runs):
    (file,) = runs.glob("*/config.yaml")
    return file.parent


def assert_same_adapter(one, other):
    left, right = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (one, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_run_folder_holds_everything(whole):
    folder, _ = whole
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert not [path for path in folder.rglob(".*") if path.name != "."]


def test_the_summary_says_what_was_done(whole):
    folder, summary = whole
    assert summary["training"]["finished"] and summary["training"]["steps"] == len(losses(folder)) == 20
    assert set(summary["evaluation"]) == {"scienceqa", "coco_caption"}
    assert summary["wall_seconds"] > 0 and summary["peak"]["host_bytes"] > 0
    assert json.loads((folder / "summary.json").read_text())["training"]["steps"] == 20


def test_versions_say_what_it_was_made_with(whole):
    written = json.loads((whole[0] / "versions.json").read_text())
    assert {"mmadapter", "python", "packages", "git", "device", "command"} <= written.keys()
    assert {"torch", "transformers"} <= written["packages"].keys()


def test_the_command_in_versions_can_be_given_to_a_shell_again(monkeypatch):
    typed = ["tasks.scienceqa.template=What is it? {question}", "name=it's mine"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", *typed])
    assert shlex.split(versions(Ranks())["command"]) == ["mmadapter", "train", *typed]


def test_every_role_is_in_the_trainable_table(whole):
    rows = json.loads((whole[0] / "trainable.json").read_text())
    assert [(row["role"], row["parameters"]) for row in rows][:2] == [("prompt", 2 * 10 * 32), ("gate", 2 * 4)]


def test_a_finished_run_is_shown_not_trained_again(inputs, whole, capsys):
    folder, _ = whole
    before = (folder / "metrics.jsonl").read_bytes()
    run(tiny_conf(inputs, folder.parent))
    output = capsys.readouterr().out
    assert "is finished; nothing is trained again" in output
    for text in ("Host alone", "Text-only adapter", "Adapter with images", "G7-12", "next:", "report.html"):
        assert text in output
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("step", [1, 11])
def test_stopped_by_a_signal_and_started_again_ends_with_the_same_adapter(inputs, whole, tmp_path, monkeypatch, step):
    original = Journal.write

    def write(self, kind, record):
        original(self, kind, record)
        if kind == "train" and record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "write", write)
    with pytest.raises(RunStopped) as stopped:
        run(tiny_conf(inputs, tmp_path))
    assert stopped.value.code == 143
    monkeypatch.undo()
    run(tiny_conf(inputs, tmp_path))
    folder = only_folder(tmp_path)
    assert losses(folder) == losses(whole[0])
    assert_same_adapter(folder, whole[0])


def test_a_stopped_run_that_was_begun_anew_says_how_it_goes_on_and_does(inputs, whole, tmp_path, monkeypatch, capsys):
    original = Journal.write

    def write(self, kind, record):
        original(self, kind, record)
        if kind == "train" and record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "write", write)
    for _ in range(2):
        with pytest.raises(RunStopped):
            run(short(inputs, tmp_path, "resume=never"))
    monkeypatch.undo()
    folder = next(path for path in tmp_path.iterdir() if path.name.endswith("-2"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"Run the same command with run={folder} in place of resume=never to go on from here." in said
    assert "the same command again" not in said
    run(short(inputs, tmp_path, f"run={folder}"))
    assert losses(folder) == losses(whole[0]) and len(list(tmp_path.glob("*/config.yaml"))) == 2


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_unfinished_evaluation_is_taken_up_again(inputs, whole, tmp_path, monkeypatch, how):
    def interrupted(*arguments, **keywords):
        os.kill(os.getpid(), getattr(signal, how))

    monkeypatch.setattr("mmadapter.training.run.evaluate", interrupted)
    with pytest.raises(RunStopped) as stopped:
        run(tiny_conf(inputs, tmp_path))
    assert stopped.value.code == (130 if how == "SIGINT" else 143)
    monkeypatch.undo()
    summary = run(tiny_conf(inputs, tmp_path))
    assert summary["training"]["steps"] == 20 and (only_folder(tmp_path) / "finished.json").is_file()
    assert_same_adapter(only_folder(tmp_path), whole[0])


def test_the_size_of_micro_batches_does_not_change_the_result(inputs, whole, tmp_path):
    run(short(inputs, tmp_path, "optimizer.micro_batch_size=8"))
    assert losses(only_folder(tmp_path)) == pytest.approx(losses(whole[0]), rel=2e-5)


def test_activation_checkpointing_does_not_change_the_result(inputs, whole, tmp_path):
    run(short(inputs, tmp_path, "host.activation_checkpointing=true"))
    assert losses(only_folder(tmp_path)) == pytest.approx(losses(whole[0]), rel=1e-6)


def test_a_bfloat16_host_trains_a_float32_adapter(inputs, tmp_path):
    summary = run(short(inputs, tmp_path, "host.dtype=bfloat16", "optimizer.epochs=0.5"))
    assert summary["training"]["steps"] == 5 and summary["training"]["nonfinite_steps"] == 0
    tensors = load_file(only_folder(tmp_path) / "adapter" / "adapter.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_dry_run_prints_table_and_memory_and_writes_nothing(inputs, tmp_path, capsys):
    facts = run(tiny_conf(inputs, tmp_path, "dry_run=true"))
    output = capsys.readouterr().out
    assert "visual_projection" in output and "memory estimate" in output and "effective batch 8 / 256" in output
    assert facts["parameters"] == 640 + 8 + (32 * 128 + 128) + (128 * 32 + 32)
    assert facts["memory"]["frozen"] > 0 and list(tmp_path.iterdir()) == []


def test_variants_are_runs_of_their_own_with_a_comparison(inputs, tmp_path, capsys):
    conf = short(inputs, tmp_path, "optimizer.epochs=0.4")
    conf.variants = {"layers_1": ["adapter.prompts.layers=1"], "layers_2": ["adapter.prompts.layers=2"]}
    conf.evaluate = ["scienceqa"]
    run(conf)
    folder = only_folder(tmp_path)
    for name, prompts in (("layers_1", 1), ("layers_2", 2)):
        part = folder / "variants" / name
        assert (part / "report.html").is_file() and (part / "finished.json").is_file()
        rows = json.loads((part / "trainable.json").read_text())
        assert next(row["tensors"] for row in rows if row["role"] == "prompt") == prompts
    assert not (folder / "metrics.jsonl").exists() and (folder / "report.html").is_file()
    assert "layers_1" in capsys.readouterr().out


def test_the_ablation_without_gates_trains_too(inputs, tmp_path):
    conf = short(inputs, tmp_path, "adapter.prompts.attention=joint", "optimizer.epochs=0.3")
    conf.adapter.groups = {"adapter": GroupConf(roles=["prompt", "visual_projection"])}
    assert run(conf)["training"]["finished"]


def test_a_named_folder_of_other_settings_is_refused_with_the_differing_key(inputs, tmp_path):
    run(short(inputs, tmp_path, "run=mine", "optimizer.epochs=0.2"))
    with pytest.raises(InputError, match=r"optimizer.base_lr: 0.04 -> 0.02"):
        run(short(inputs, tmp_path, "run=mine", "optimizer.epochs=0.2", "optimizer.base_lr=0.02"))


def test_the_world_is_unpacked_where_it_is_missing_with_a_line_that_says_so(inputs, tmp_path, capsys):
    world = tmp_path / "made"
    few = [f"data.{entry}.limit=40" for entry in ("sources.questions", "sources.captions", "validation.questions")]
    run(short(inputs, tmp_path / "runs", f"data.root={world}", "optimizer.epochs=0.2", "evaluate=[]", *few))
    assert (world / "scienceqa" / "problems.json").is_file()
    assert f"{world} is missing: unpacking the embedded world" in capsys.readouterr().out


def test_validating_on_what_is_trained_on_is_refused(inputs, tmp_path):
    conf = short(inputs, tmp_path)
    conf.data.validation["questions"].split = "train"
    with pytest.raises(InputError, match=r"data.validation.questions: .* is trained on"):
        run(conf)


def test_a_test_split_that_is_missing_shows_before_the_training(inputs, tmp_path):
    conf = short(inputs, tmp_path)
    conf.evaluate = ["scienceqa"]
    conf.tasks["scienceqa"].split = "tset"
    with pytest.raises(InputError, match="tset"):
        run(conf)
    assert not (only_folder(tmp_path) / "metrics.jsonl").exists()


def test_a_second_process_in_the_same_folder_is_refused(inputs, tmp_path):
    conf = short(inputs, tmp_path, "run=mine")
    with attempt(tmp_path / "mine", 1):
        save_config(conf, tmp_path / "mine")
        with pytest.raises(InputError, match="Another process is working in .*run=NAME"):
            run(conf)
    run(short(inputs, tmp_path, "run=mine"))


def test_a_gpu_that_is_not_there_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no GPU"):
        run(short(inputs, tmp_path, "engine.device=cuda"))


def test_a_start_that_is_not_there_is_refused_before_weights_are_read(inputs, tmp_path):
    with pytest.raises(
        InputError, match=r"adapter.start=/no/run: there is no adapter.json .* e.g. adapter.start=runs/NAME"
    ):
        run(tiny_conf(inputs, tmp_path, "adapter.start=/no/run"))
