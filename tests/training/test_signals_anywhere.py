"""Signals outside of the training loop end a run with the documented status and a line; the same command goes on."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmadapter.training.loop import Loop
from mmadapter.training.run import run
from tests.distributed.several import Several, in_own_process
from tests.training.launched import run_like_the_entry, short
from tests.training.test_run import assert_same_adapter, losses
from tests.training.tiny_run import save_inputs, tiny_conf, tiny_overrides

STATUS = {"SIGINT": 130, "SIGUSR1": 138, "SIGUSR2": 140, "SIGTERM": 143}
SETTINGS = ("run=mine", "optimizer.epochs=0.3", "evaluate=[coco_caption,scienceqa]")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def conf_of(inputs, runs):
    conf = tiny_conf(inputs, runs, *SETTINGS)
    conf.comparison = {}
    return conf


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    run(conf_of(inputs, runs))
    return runs / "mine"


def signal_before(owner, name, number, when=lambda arguments: True):
    """Replaces a function by one that first sends this process the signal, once."""
    original = getattr(owner, name)

    def signalled(*arguments, **keywords):
        if when(arguments):
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    setattr(owner, name, signalled)


def moments():
    """What a run does outside of the loop: where it is found, and when it counts."""
    from mmadapter.model import AdaptedModel
    from mmadapter.tasks import asking
    from mmadapter.vision.encoder import VisionEncoder

    return {
        "loading": (AdaptedModel, "build"),
        "encoding": (VisionEncoder, "encode_one"),
        "ending the loop": (Loop, "_closing_lines"),
        "evaluating": (asking, "generate_answers", lambda arguments: arguments[2].name == "scienceqa"),
        "reporting": (
            importlib.import_module("mmadapter.training.run"),
            "write_report",
            lambda arguments: is_evaluated(*arguments),
        ),
    }


def is_evaluated(folder):
    """The last report of a run, not one while it trains."""
    return (folder / "eval" / "scienceqa" / "metrics.json").is_file()


@pytest.mark.parametrize(
    "moment, name",
    [
        ("loading", "SIGUSR1"),
        ("encoding", "SIGUSR2"),
        ("ending the loop", "SIGTERM"),
        *(("evaluating", name) for name in STATUS),
        ("reporting", "SIGINT"),
    ],
)
def test_a_signal_ends_the_run_with_its_status_and_the_same_command_goes_on(
    inputs, undisturbed, tmp_path, moment, name
):
    def body():
        owner, function, *when = moments()[moment]
        signal_before(owner, function, getattr(signal, name), *when)
        run(conf_of(inputs, tmp_path))

    process = in_own_process(body, output=tmp_path / "output")
    process.join(60)
    said, folder = (tmp_path / "output").read_text(), tmp_path / "mine"
    assert process.exitcode == STATUS[name], said
    assert f"interrupted by {name}. Run the same command again" in said and "Traceback" not in said
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("eval/*/*")}
    assert len({path.parent for path in finished}) == {"evaluating": 1, "reporting": 2}.get(moment, 0)
    assert run(conf_of(inputs, tmp_path))["attempts"] == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished task was asked again"
    assert losses(folder) == losses(undisturbed)
    assert_same_adapter(folder, undisturbed)


def test_a_signal_in_the_last_moment_of_the_loop_is_not_lost(inputs, undisturbed, tmp_path):
    """It comes when nobody asks for it any more: while the last checkpoint is written."""

    def body():
        signal_before(Loop, "_save", signal.SIGUSR1, lambda arguments: arguments[0].position.step == 3)
        run(conf_of(inputs, tmp_path))

    process = in_own_process(body, output=tmp_path / "output")
    process.join(60)
    assert process.exitcode == 138, (tmp_path / "output").read_text()
    run(conf_of(inputs, tmp_path))
    assert_same_adapter(tmp_path / "mine", undisturbed)


def test_a_signal_to_one_of_two_processes_in_the_evaluation_ends_both(inputs, tmp_path):
    conf = short(inputs, tmp_path / "runs", "evaluate=[scienceqa]")

    def disturb(rank):
        if rank == 1:
            owner, function, *when = moments()["evaluating"]
            signal_before(owner, function, signal.SIGTERM, *when)

    group = Several(2, run_like_the_entry, conf, disturb, folder=tmp_path / "said")
    statuses = group.end()
    assert statuses == [143, 143], group.said(0) + group.said(1)
    assert "Traceback" not in group.said(0) + group.said(1)
    group = Several(2, run_like_the_entry, conf, None, folder=tmp_path / "again")
    assert group.end() == [0, 0], group.said(0)


def handles_itself(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal. Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_while_settings_are_composed_ends_the_command_with_a_line(inputs, tmp_path, checkout, name):
    command = [sys.executable, "train.py", *tiny_overrides(inputs, tmp_path), *SETTINGS]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 30
    while not handles_itself(process.pid, getattr(signal, name)) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == STATUS[name] and f"interrupted by {name}" in said, said
    assert "Traceback" not in said and not (tmp_path / "mine" / "finished.json").exists()
