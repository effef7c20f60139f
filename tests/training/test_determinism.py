"""engine.deterministic is on while a run trains, gives way where nothing else is there, and is gone afterwards."""

import os

import pytest
import torch

from mmadapter.errors import InputError
from mmadapter.model import AdaptedModel
from mmadapter.training.determinism import deterministic
from mmadapter.training.engine import SingleDeviceEngine
from mmadapter.training.run import run
from tests.training.launched import losses, short
from tests.training.tiny_run import save_inputs


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    return save_inputs(tmp_path / "inputs")


def state():
    mode = torch.get_deterministic_debug_mode()  # 0 off, 1 warns, 2 raises
    return mode, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def noting(monkeypatch, kind, method, seen):
    original = getattr(kind, method)

    def noted(*arguments, **keywords):
        seen.append(state())
        return original(*arguments, **keywords)

    monkeypatch.setattr(kind, method, noted)


def test_a_run_trains_under_it_and_leaves_nothing_behind(inputs, tmp_path, monkeypatch):
    steps, answers = [], []
    noting(monkeypatch, SingleDeviceEngine, "step", steps)
    noting(monkeypatch, AdaptedModel, "answer", answers)
    settings = ("engine.name=single", "optimizer.epochs=0.5", "evaluate=[scienceqa]")
    run(short(inputs, tmp_path / "plain", *settings))
    assert set(steps + answers) == {(0, None)}
    del steps[:], answers[:]
    run(short(inputs, tmp_path / "deterministic", *settings, "engine.deterministic=true"))
    assert set(steps) == {(2, ":4096:8")} and set(answers) == {(1, ":4096:8")}
    assert state() == (0, None)
    assert losses(tmp_path / "deterministic") == losses(tmp_path / "plain")
    names = [
        [file.parent.name for file in (tmp_path / kind).glob("*/config.yaml")] for kind in ("plain", "deterministic")
    ]
    assert names[0] == names[1], "it is the same run"


def test_what_a_user_has_set_before_stays_also_after_an_error(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.raises(RuntimeError, match="broken"), deterministic(True):
            assert state() == (2, ":16:8")
            raise RuntimeError("broken")
        assert state() == (1, ":16:8")
        text = "put_() does not have a deterministic implementation, but you set ..."
        with pytest.raises(InputError, match="engine.deterministic=true: put_"), deterministic(True):
            raise RuntimeError(text)
    finally:
        torch.use_deterministic_algorithms(False)
