"""The real launchers start real runs: launch.processes, torchrun, deepspeed; as a user types them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmadapter import cli
from mmadapter.config import RunConf
from tests.distributed.several import free_port
from tests.training.tiny_run import save_inputs

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, runs: Path, *more: str) -> list[str]:
    return [
        str(CHECKOUT / "train.py"),
        f"host.path={inputs / 'host'}",
        f"vision.model={inputs / 'clip'}",
        "vision.layers=[1,2]",
        f"data.root={inputs / 'world'}",
        f"runs_root={runs}",
        *("adapter.prompts.layers=2", "optimizer.epochs=1", "optimizer.batch_size=8", "optimizer.micro_batch_size=4"),
        *("training.tensorboard=false", "evaluate=[]", "~comparison.host", "~comparison.text_only"),
        *("engine=zero1", *more),
    ]


def start(command: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{PROGRAMS}{os.pathsep}{environment['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, cwd=CHECKOUT, env=environment, **pipes)


def wait_for_a_checkpoint(runs: Path) -> None:
    deadline = time.monotonic() + 200
    while not list(runs.glob("*/checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def only_run(runs: Path) -> Path:
    (file,) = runs.glob("*/config.yaml")
    return file.parent


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "launch.processes"])
def test_a_launcher_trains_one_run_with_two_processes(inputs, tmp_path, launcher):
    port = str(free_port())
    command = {
        "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", port, *arguments(inputs, tmp_path)],
        "deepspeed": ["deepspeed", "--no_local_rank", "--num_gpus", "2", "--master_port", port]
        + arguments(inputs, tmp_path),
        "launch.processes": [sys.executable, *arguments(inputs, tmp_path, "launch.processes=2")],
    }[launcher]
    process = start(command)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert said.count("trained 10 steps") == 1
    versions = json.loads((only_run(tmp_path) / "versions.json").read_text())
    assert (versions["processes"], versions["launcher"]) == (2, launcher)
    assert (only_run(tmp_path) / "adapter" / "adapter.safetensors").is_file()


@pytest.mark.slow
def test_launched_processes_stop_at_a_signal_to_their_starter_and_go_on(inputs, tmp_path):
    command = [sys.executable, *arguments(inputs, tmp_path, "launch.processes=2", "optimizer.epochs=40")]
    process = start(command)
    wait_for_a_checkpoint(tmp_path)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and said.count("stopped by SIGTERM after step") == 1, said
    again = start(command)
    seen = ""
    while "continuing at step" not in seen and (line := again.stdout.readline()):
        seen += line
    again.kill()  # the starter alone: the others end with it
    seen += again.communicate(timeout=60)[0]  # whose output ends only when they are gone
    assert "continuing at step" in seen


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1], ids=lambda number: number.name)
def test_when_torchrun_is_gone_its_processes_save_and_end_and_the_run_goes_on(inputs, tmp_path, number):
    """The store that the processes met at ends with torchrun. It does not handle SIGUSR1, unless it is told to."""

    def torchrun():
        command = ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port())]
        return start([*command, *arguments(inputs, tmp_path, "optimizer.epochs=4000")])

    process = torchrun()
    wait_for_a_checkpoint(tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]  # the output ends only when all that write to it are gone
    assert process.returncode == -number and said.count("stopped by SIGTERM after step") == 1, said
    step = re.search(r"after step (\d+) of", said)[1]
    assert (only_run(tmp_path) / "checkpoints" / f"step-{int(step):06d}").is_dir()
    again, seen = torchrun(), ""
    while "continuing at step" not in seen and (line := again.stdout.readline()):
        seen += line
    again.terminate()
    seen += again.communicate(timeout=60)[0]
    assert f"continuing at step {int(step)}" in seen.replace(",", ""), seen


def test_the_starter_gives_each_process_the_jobs_own_settings_and_its_part_of_the_cores(monkeypatch, tmp_path):
    """Also in a sweep (-m), where the command line itself names many jobs."""
    started = []

    def note(command, count, environment):
        started.append((command, count, environment["OMP_NUM_THREADS"]))
        return 0

    script = tmp_path / "train.py"
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    monkeypatch.setattr(cli, "start_ranks", note)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the entry sets it
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "engine=zero1", "launch.processes=4"])
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"runs_root={tmp_path}", sweep])
    cli.command("train", RunConf, lambda conf: pytest.fail("trained here"), script)
    assert [(count, threads) for _, count, threads in started] == [(4, "1"), (4, "1")]
    assert [next(word for word in command if word.startswith("seed=")) for command, _, _ in started] == [
        "seed=1",
        "seed=2",
    ]
    assert all(command[:2] == [sys.executable, str(script)] and "-m" not in command for command, _, _ in started)
    assert all({"engine=zero1", "launch.processes=4"} <= set(command) for command, _, _ in started)


def test_a_sweeps_job_whose_processes_fail_is_a_failed_job_and_a_stopped_one_ends_the_sweep(monkeypatch, tmp_path):
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    asked = []
    words = ["train.py", "-m", "seed=1,2", "engine=zero1", "launch.processes=2", f"runs_root={tmp_path}"]

    def sweep(status):
        asked.clear()
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the entry sets it
        monkeypatch.setattr(cli, "start_ranks", lambda *a: asked.append(a) or status)
        monkeypatch.setattr(sys, "argv", [*words, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
        with pytest.raises(SystemExit) as ended:
            cli.command("train", RunConf, lambda conf: pytest.fail("trained here"), tmp_path / "train.py")
        return ended.value.code, len(asked)

    assert sweep(143) == (143, 1)
    code, jobs = sweep(2)
    assert code not in (0, None) and jobs == 2
