"""`mmadapter doctor`: what it says is so, what is missing is named with how to get it, and no name gets out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch

import mmadapter
from mmadapter import doctor
from mmadapter.hosts import load

SELF_TEST = {"works": True, "device": "cpu", "loss": 1.0, "import_seconds": 0.1, "seconds": 0.1}


@pytest.fixture
def run(monkeypatch, capsys):
    """(status, output) of the command; without the self-test, which takes seconds."""
    monkeypatch.setattr(doctor, "self_test", lambda: SELF_TEST)

    def command(*words: str) -> tuple[int, str]:
        status = 0
        try:
            doctor.main(list(words))
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out

    return command


def without(monkeypatch, *packages: str) -> None:
    """As if these were not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def check(output: str, what: str) -> dict:
    """One line of "what works here"."""
    return next(one for one in json.loads(output)["checks"] if one["what"] == what)


def test_the_values_are_those_of_this_machine(run):
    status, output = run("--json")
    told = json.loads(output)
    assert status == 0
    assert told["mmadapter"] == mmadapter.__version__ and told["python"] == platform.python_version()
    for name in ("torch", "transformers", "timm", "open_clip_torch"):
        assert told["versions"][name] == importlib.metadata.version(name)
    assert told["optional"]["optuna"]["extras"] == ["search"]
    assert told["cpu"]["cores"] == len(os.sched_getaffinity(0)) and told["cpu"]["threads"] >= 1
    assert told["folder"]["free"] == pytest.approx(shutil.disk_usage(".").free, rel=0.05)
    assert 0 < told["memory"]["available"] <= told["memory"]["total"]
    assert Path(told["places"]["tiny models"], "llama", "config.json").expanduser().is_file()
    assert Path(told["places"]["conf"], "train.yaml").expanduser().is_file()
    assert len(told["gpus"]) == torch.cuda.device_count()


def test_what_is_said_of_bfloat16_is_what_a_load_goes_by(run, monkeypatch):
    what = "fast bfloat16 on the CPU"
    for found in ({"bf16": True}, {}):  # an ARM processor with and without it
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        told = check(run("--json")[1], what)
        assert told["works"] is bool(found) is bool(load.fast_bfloat16())
    assert told["fix"] == "host.dtype=auto takes float32"


def test_the_self_test_trains_and_answers():
    told = doctor.self_test()
    assert told["works"], told
    assert told["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu") and 0 < told["loss"] < 30


def test_what_only_some_commands_need_is_named_with_its_extra_and_the_status_stays_0(run, monkeypatch):
    without(monkeypatch, "optuna", "deepspeed")
    status, output = run("--json")
    assert status == 0
    search, zero = check(output, "searches with Optuna (sweep)"), check(output, "engine=zero*")
    assert not search["works"] and search["detail"] == "missing: optuna"
    assert search["fix"] == "pip install 'mmadapter[search]'"
    assert not zero["works"] and zero["fix"].startswith("pip install 'deepspeed")
    _, shown = run()
    assert "✗ searches with Optuna (sweep): missing: optuna. To get it: pip install 'mmadapter[search]'" in shown
    assert "✓ required packages" in shown and "All that a training needs is here." in shown


def test_what_everything_needs_and_is_missing_gives_status_1(run, monkeypatch):
    without(monkeypatch, "transformers")
    status, output = run("--json")
    assert status == 1
    needed = check(output, "required packages")
    assert not needed["works"] and needed["fix"].startswith("pip install 'transformers")
    assert "Broken: required packages" in run()[1]


def test_a_version_that_is_too_old_is_no_better_than_none(run, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "transformers" else real(name))
    status, output = run("--json")
    assert status == 1 and "transformers" in check(output, "required packages")["detail"]


def test_an_installation_that_fails_in_use_is_told_in_a_line(run, monkeypatch):
    from mmadapter.model import AdaptedModel

    def broken(*_, **__):
        raise ImportError("libfoo.so: cannot open shared object file\nsecond line")

    monkeypatch.undo()
    monkeypatch.setattr(AdaptedModel, "build", broken)
    status, output = run("--json")
    told = check(output, "self-test")
    assert status == 1 and told["detail"] == "ImportError: libfoo.so: cannot open shared object file"


def test_prepared_models_are_listed(run, monkeypatch, tmp_path):
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    (tmp_path / "half").mkdir()
    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path))
    assert check(run("--json")[1], "pretrained models")["detail"] == "smollm2"
    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path / "none"))
    assert check(run("--json")[1], "pretrained models")["fix"].startswith("mmadapter pretrained smollm2")


def test_no_name_of_a_user_or_a_machine_is_printed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "node17.lab")
    told = doctor.without_names(
        {"conf": "/home/alice/env/conf", "data": ["/scratch/alice/x", "node17.lab is down", "alicent"], "free": 3}
    )
    assert told == {"conf": "~/env/conf", "data": ["/scratch/USER/x", "HOST is down", "alicent"], "free": 3}
