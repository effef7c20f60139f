"""`mmadapter runs`: what it says of a run is what the run's files say; attempt.json tells how a run ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmadapter.errors import InputError
from mmadapter.runs.__main__ import as_text, list_runs, main
from mmadapter.runs.state import RunFolder, is_alive, process_start, state_of
from mmadapter.runs.sweep import note_jobs
from mmadapter.sweeps.__main__ import main as write_sweeps
from tests.made_runs import STEPS, made_run, made_sweep

CHECKOUT = Path(__file__).parents[2]


def state(folder, **known):
    return state_of(RunFolder(folder), **known)


def test_a_finished_run_has_its_numbers(tmp_path):
    run = state(made_run(tmp_path / "a", "finished", score=60.0))
    assert (run.state, run.experiment, run.step, run.steps, run.percent) == ("finished", "made", STEPS, STEPS, 100)
    assert run.scores == {"scienceqa.Avg": 60.0}, "IMG was not scored: it must not appear"
    assert run.best_validation == pytest.approx(1.4) and run.seconds == 30.0


def test_an_unfinished_run_says_how_it_ended(tmp_path):
    stopped = state(made_run(tmp_path / "a", "stopped", signal="SIGUSR2"))
    failed = state(made_run(tmp_path / "b", "failed", message="No room left"))
    assert (stopped.state, stopped.reason, stopped.step, stopped.percent) == ("stopped", "SIGUSR2", 10, 25)
    assert (failed.state, failed.reason) == ("failed", "No room left")
    assert state(tmp_path / "none").state == "never started"


def test_a_cluster_launcher_that_exits_with_its_own_code_leaves_the_signal_in_the_journal(tmp_path):
    folder = made_run(tmp_path / "a", "stopped", signal=None)
    (folder / "metrics.jsonl").write_text('{"kind": "event", "event": "stopped", "step": 5, "signal": "SIGUSR2"}\n')
    assert state(folder).reason == "SIGUSR2"
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "event", "event": "resumed", "step": 5}\n')
    assert state(folder).reason is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "a: [", "\0"])
def test_files_that_a_kill_or_a_full_disk_has_cut_are_as_none(tmp_path, content):
    folder = made_run(tmp_path / "a", "finished", score=60.0)
    for name in ("config.yaml", "attempt.json", "finished.json", "metrics.jsonl", "eval/scienceqa/metrics.json"):
        assert (folder / name).is_file()
        (folder / name).write_text(content)
    run = state(folder)
    assert (run.state, run.step, run.scores) == ("never started", None, {})


def test_what_is_not_as_a_run_writes_it_is_missing_and_is_told(tmp_path, capsys):
    folder = made_run(tmp_path / "a", "running", pid=10**30, host=5, message=["x"], total_steps="all")
    (folder / "finished.json").write_text(json.dumps({"wall_seconds": "long", "attempts": 2, "peak": 5, "training": 1}))
    (folder / "config.yaml").write_text("experiment: [made]\nevaluate: {scienceqa: 1}\nvision: 5\n")
    run = state(folder)
    assert (run.state, run.experiment, run.host, run.seconds, run.steps) == ("finished", None, None, 5.0, 10)
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for line in (
        "not shown: attempt.json: `host` is int '5', no text",
        "not shown: finished.json: `wall_seconds` is str 'long', no number",
        " more such fields",
    ):
        assert line in told
    assert main([str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["left_out"]) == 6


def test_numbers_of_no_process_are_of_none_that_lives():
    assert not any(is_alive(pid, None) for pid in (10**30, 0, -1, None))


def test_running_is_believed_on_this_machine_only_while_the_process_lives(tmp_path):
    assert state(made_run(tmp_path / "a", "running")).state == "running"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert state(made_run(tmp_path / "b", "running", pid=ended.pid)).state == "killed"
    other_start = (process_start(os.getpid()) or 0) - 1  # the number was given to another process
    assert state(made_run(tmp_path / "c", "running", pid_start=other_start)).state == "killed"
    assert is_alive(os.getpid(), None) and not is_alive(None, None)


def test_a_run_elsewhere_is_told_by_its_last_sign_of_life(tmp_path):
    folder = made_run(tmp_path / "a", "running", host="node17")
    fresh = state(folder)
    assert fresh.state == "running" and "node17, last sign of life" in fresh.reason
    long_ago = time.time() - 3600
    for file in folder.rglob("*"):
        os.utime(file, (long_ago, long_ago))
    silent = state(folder)
    assert silent.state == "silent" and "1 h 00 min ago" in silent.reason


def test_the_queue_knows_waiting_and_lost_jobs(tmp_path):
    stopped = made_run(tmp_path / "a", "stopped", signal="SIGUSR2", slurm_job="7_1", attempts=3)
    waiting = state(stopped, queue={"7_1": ("PENDING", "Resources")})
    assert waiting.state == "waiting" and waiting.reason == "in the queue (Resources), stopped before; attempts: 3"
    lost = made_run(tmp_path / "b", "running", host="node17", slurm_job="7_2")
    assert state(lost, queue={}).state == "killed"
    assert state(lost, queue=None).state == "running", "without SLURM nothing is known of the queue"
    assert state(tmp_path / "c", slurm_job="7_3", queue={"7_3": ("PENDING", "Priority")}).state == "waiting"
    finished = made_run(tmp_path / "d", "finished", slurm_job="7_4")
    assert state(finished, queue={"7_4": ("PENDING", "x")}).state == "finished"


def test_the_list_holds_every_job_once_and_the_runs_without_a_sweep(tmp_path):
    made_sweep(tmp_path, {"seed=0": ("finished", 50), "seed=1": ("failed", 0), "seed=2": ("", 0)})
    made_run(tmp_path / "alone", "stopped", signal="SIGTERM")
    (tmp_path / "no_run").mkdir()
    listed = list_runs([tmp_path], queue=None)
    assert [(one.sweep, one.job, one.state) for one in listed] == [
        ("made", 0, "finished"),
        ("made", 1, "failed"),
        ("made", 2, "never started"),
        (None, None, "stopped"),
    ]
    assert len(list_runs([tmp_path / "sweeps" / "made"], queue=None)) == 3
    assert len(list_runs([tmp_path / "alone"], queue=None)) == 1
    with pytest.raises(InputError, match="no such folder"):
        list_runs([tmp_path / "elsewhere"], queue=None)


def test_a_run_that_two_sweeps_share_is_listed_in_both_and_counted_once(tmp_path):
    sweep = made_sweep(tmp_path, {"seed=0": ("finished", 50), "seed=1": ("stopped", 0)})
    shutil.copytree(sweep, sweep.with_name("wider"))
    listed = list_runs([tmp_path], queue=None)
    assert [one.sweep for one in listed] == ["made", "made", "wider", "wider"]
    assert as_text(listed).splitlines()[-1] == "1 finished, 1 stopped"


def test_an_error_before_the_run_folder_is_known_to_the_sweep(tmp_path):
    folder = made_sweep(tmp_path, {"seed=0": ("", 0)})
    note_jobs(folder, {0: {"failed": "optimizer.base_lr=-1: must be above 0."}})
    (one,) = list_runs([folder], queue=None)
    assert one.state == "failed" and "must be above 0" in one.reason


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    made_sweep(tmp_path, {"seed=0": ("finished", 62.5), "seed=1": ("failed", 0)})
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "scienceqa.Avg 62.5" in told and "Out of memory" in told and "1 finished, 1 failed" in told
    assert main([str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["state"] == "finished" and rows[0]["job"] == 0 and rows[1]["reason"] == "Out of memory"
    assert main([str(tmp_path / "nothing")]) == 2 and "error: " in capsys.readouterr().err
    assert write_sweeps([str(tmp_path)]) == 2 and "is no sweep" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"command": "python', "[]", '{"jobs": [1]}', "\udcff"])
def test_a_damaged_sweep_is_named_and_hides_no_other_run(tmp_path, capsys, content):
    folder = made_sweep(tmp_path, {"seed=0": ("finished", 50), "seed=1": ("", 0)})
    made_run(tmp_path / "alone", "stopped", signal="SIGTERM")
    (folder / "sweep.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "1 stopped, 1 finished" in told.out
    assert f"error: {folder / 'sweep.json'} is damaged" in told.err and "give the sweep's command again" in told.err
    assert main([str(tmp_path), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert write_sweeps([str(folder)]) == 2 and "is damaged" in capsys.readouterr().err


def test_the_command_imports_nothing_heavy():
    code = "import mmadapter.runs.__main__, mmadapter.sweeps.__main__, sys; print(sorted({'torch'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "error,state,reason",
    [
        (None, "finished", None),
        (InputError("what to mend"), "failed", "what to mend"),
        (RuntimeError("a bug"), "failed", "RuntimeError: a bug"),
        (KeyboardInterrupt(signal.SIGTERM), "stopped", "SIGTERM"),
        (SystemExit(128 + signal.SIGUSR1), "stopped", "SIGUSR1"),
        (SystemExit(-1), "stopped", None),
    ],
)
def test_an_attempt_notes_its_end(tmp_path, monkeypatch, error, state, reason):
    from mmadapter.runs.attempt import attempt, note

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (tmp_path / "attempt.json").write_text('{"state": "failed", "message": "of an earlier attempt"}')
    try:
        with attempt(tmp_path, 1):
            note(tmp_path, total_steps=7)
            during = json.loads((tmp_path / "attempt.json").read_text())
            assert during["state"] == "running" and during["pid"] == os.getpid() and "message" not in during
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    told = json.loads((tmp_path / "attempt.json").read_text())
    assert told["state"] == state and (told.get("message") or told.get("signal")) == reason
    assert told["total_steps"] == 7 and told["slurm_job"] == "10_3" and told["host"] == socket.gethostname()
