"""The wall time of a run: the sum over all attempts, killed ones up to their last sign of life."""

import json
import os
import time

import pytest

from mmadapter.errors import InputError
from mmadapter.runs.attempt import attempt, settle_finished, wall_time
from mmadapter.training.summary import facts_line


def earlier_attempt(folder, **facts):
    (folder / "attempt.json").write_text(json.dumps({"state": "stopped", "started": 1000.0, **facts}))
    os.utime(folder / "attempt.json", (1001.0, 1001.0))


def counted(folder):
    with attempt(folder, world_size=1):
        return wall_time(folder)


def test_the_first_attempt_counts_alone(tmp_path):
    time_of_run = counted(tmp_path)
    assert time_of_run["attempts"] == 1 and 0 <= time_of_run["wall_seconds"] < 60


def test_earlier_attempts_are_added(tmp_path):
    earlier_attempt(tmp_path, ended=1300.0, earlier_seconds=500.0, attempts=2)
    time_of_run = counted(tmp_path)
    assert time_of_run["attempts"] == 3 and time_of_run["wall_seconds"] == pytest.approx(800, abs=60)
    assert counted(tmp_path)["attempts"] == 4


def test_a_killed_attempt_counts_up_to_its_last_line_of_the_journal(tmp_path):
    earlier_attempt(tmp_path, state="running")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    os.utime(tmp_path / "metrics.jsonl", (1200.0, 1200.0))
    assert counted(tmp_path)["wall_seconds"] == pytest.approx(200, abs=60)


def test_a_clock_that_was_set_back_takes_nothing_away(tmp_path):
    earlier_attempt(tmp_path, started=time.time() + 1e6, ended=2000.0, earlier_seconds=30.0)
    assert counted(tmp_path)["wall_seconds"] >= 30


def test_the_closing_line_says_that_it_is_a_sum():
    summary = {"wall_seconds": 100.0, "peak": {"host_bytes": 1}}
    assert "in 3 attempts" in facts_line(summary | {"attempts": 3})
    assert "attempt" not in facts_line(summary | {"attempts": 1})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"started": "x", "attempts": null}', "[" * 100_000, '{"started": 1e999}']
)
def test_a_damaged_note_of_an_earlier_attempt_is_no_reason_to_stop(tmp_path, content):
    (tmp_path / "attempt.json").write_text(content)
    time_of_run = counted(tmp_path)
    assert time_of_run["attempts"] == 1 and 0 <= time_of_run["wall_seconds"] < 60
    assert json.loads((tmp_path / "attempt.json").read_text())["state"] == "finished"


def test_a_folder_that_is_taken_away_is_said_and_not_made_again(tmp_path):
    folder = tmp_path / "run"
    told = "run was removed or renamed while the run was working there"
    with pytest.raises(InputError, match=told), attempt(folder, world_size=1):
        folder.rename(tmp_path / "elsewhere")
        wall_time(folder)
    assert not folder.exists()


def test_a_kill_at_the_last_write_leaves_no_run_that_runs_for_ever(tmp_path):
    (tmp_path / "attempt.json").write_text(json.dumps({"state": "running", "started": 1000.0, "pid": 1 << 30}))
    (tmp_path / ".attempt.json.machine.1.writing").write_text("{")
    (tmp_path / "finished.json").write_text("{}")
    settle_finished(tmp_path)
    assert json.loads((tmp_path / "attempt.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt.json", "finished.json"]


def test_a_run_that_another_process_works_on_is_left_alone(tmp_path):
    (tmp_path / "finished.json").write_text("{}")
    with attempt(tmp_path, world_size=1):
        settle_finished(tmp_path)
        assert json.loads((tmp_path / "attempt.json").read_text())["state"] == "running"
