"""The search: its proposals depend on seed, number and results alone; nothing is lost or doubled when it is killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmadapter.errors import InputError
from mmadapter.runs.sweep import read_results
from mmadapter.sweeps.job import Job, PlannedRun
from mmadapter.sweeps.search import Search, Span, only_search, spaces_of
from mmadapter.sweeps.sweeper import batches, combinations, fixed_words
from tests.training.tiny_run import save_inputs

CHECKOUT = Path(__file__).parents[2]
SPACES = {"lr": Span(1e-4, 1e-1, log=True), "layers": ["10", "20", "30"], "width": Span(1, 8, whole=True)}


def parsed(*words: str):
    return OverridesParser.create().parse_overrides(list(words))


def score(values) -> float:
    return -abs(math.log10(float(values["lr"])) + 2) - abs(int(values["layers"]) - 20) / 10 + int(values["width"]) / 8


def searched(folder: Path, trials: int, *, seed: int = 0, killed_at: tuple[int, ...] = (), parallel: int = 1):
    """The values of all trials of a search that is thrown away and opened again at some trials, before their result."""
    pytest.importorskip("optuna", reason="needs the extra [search]")
    search = Search(folder, SPACES, direction="maximize", seed=seed)
    asked: dict[int, dict[str, str]] = {}
    killed = set(killed_at)
    batch = search.unfinished()
    while batch or search.asked < trials:
        while len(batch) < parallel and search.asked < trials:
            batch.append(search.ask(parallel))
        for trial in batch:
            assert asked.setdefault(trial.number, dict(trial.values)) == dict(trial.values), (
                "another trial after a kill"
            )
        if killed & {trial.number for trial in batch}:
            killed -= {trial.number for trial in batch}
            search = Search(folder, SPACES, direction="maximize", seed=seed)
            batch = search.unfinished()
            continue
        for trial in batch:
            search.tell(trial.number, None if trial.number == 3 else score(trial.values))
        batch = []
    assert sorted(asked) == list(range(trials)) and search.asked == trials
    return [asked[number] for number in range(trials)]


def test_the_same_study_twice_gives_the_same_trials_also_when_killed(tmp_path):
    whole = searched(tmp_path / "a", 16)
    assert searched(tmp_path / "b", 16, killed_at=(0, 5, 13)) == whole
    assert searched(tmp_path / "c", 16, seed=1) != whole


def test_a_finished_study_goes_on_when_more_trials_are_asked_for(tmp_path):
    whole = searched(tmp_path / "a", 14)
    short = searched(tmp_path / "b", 12)
    assert short == whole[:12]
    search = Search(tmp_path / "b", SPACES, direction="maximize", seed=0)
    assert [dict(search.ask(1).values)] == whole[12:13]


def test_trials_at_the_same_time_are_all_found_again(tmp_path):
    whole = searched(tmp_path / "a", 15, parallel=3)
    assert searched(tmp_path / "b", 15, parallel=3, killed_at=(4, 12)) == whole


def test_proposals_lie_in_their_spaces_and_follow_the_results(tmp_path):
    trials = searched(tmp_path / "a", 40)
    rates = [float(one["lr"]) for one in trials]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-3 and max(rates) > 1e-2
    assert {one["layers"] for one in trials} == {"10", "20", "30"}
    assert {int(one["width"]) for one in trials} <= set(range(1, 9))
    early, late = (sum(score(one) for one in part) / len(part) for part in (trials[:10], trials[-10:]))
    assert late > early + 0.3, "the search has not learned"


def test_a_range_that_cannot_be_searched_is_refused(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    for span in (Span(1.0, 0.1), Span(0.0, 1.0, log=True)):
        with pytest.raises(InputError, match="lr: cannot be searched"):
            Search(tmp_path, {"lr": span}, direction="maximize", seed=0)
    with pytest.raises(InputError, match="needs a setting to search in"):
        Search(tmp_path, {}, direction="maximize", seed=0)


def test_without_optuna_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[search\]'"):
        Search(tmp_path, SPACES, direction="maximize", seed=0)


def test_two_processes_do_not_share_a_study(tmp_path):
    with only_search(tmp_path), pytest.raises(InputError, match="Another process"), only_search(tmp_path):
        pass
    with only_search(tmp_path):
        pass


def test_spaces_come_from_the_command_line():
    words = parsed(
        "a=tag(log,interval(1e-4,1e-1))",
        "b=interval(0,1)",
        "c=tag(int,interval(1,8))",
        "d=x,y",
        "e=range(2,9,3)",
        "f=1",
    )
    assert spaces_of(words) == {
        "a": Span(1e-4, 1e-1, log=True),
        "b": Span(0.0, 1.0),
        "c": Span(1.0, 8.0, whole=True),
        "d": ["x", "y"],
        "e": Span(2, 8, whole=True, step=3),
    }
    assert fixed_words(words) == ["f=1"]


def test_a_grid_is_every_combination_the_last_key_fastest():
    words = parsed("a=1,2", "b=x", "~c", "d=range(0,2)")
    assert combinations(words) == [[f"a={a}", "b=x", "~c", f"d={d}"] for a in (1, 2) for d in (0, 1)]
    with pytest.raises(InputError, match="sweep.trials=N"):
        combinations(parsed("a=interval(0,1)"))


def test_a_launcher_gets_jobs_of_consecutive_numbers():
    def numbers(*jobs, most=None):
        made = [Job(number, [], PlannedRun(Path(), "", None, "minimize", bool, None)) for number in jobs]
        return [[job.number for job in batch] for batch in batches(made, most)]

    assert numbers(0, 1, 3, 4, 7) == [[0, 1], [3, 4], [7]]
    assert numbers(0, 1, 2, 3, 4, most=2) == [[0, 1], [2, 3], [4]]


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_the_same_trials(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra [search]")
    inputs = save_inputs(tmp_path)

    def start(runs: str) -> subprocess.Popen:
        words = [
            f"host.path={inputs / 'host'}", f"vision.model={inputs / 'clip'}", "vision.layers=[1,2]",
            f"data.root={inputs / 'world'}", "adapter.prompts.layers=2", "optimizer.epochs=1", "optimizer.batch_size=8",
            "optimizer.micro_batch_size=4", "training.tensorboard=false", "comparison={}", "evaluate=[]",
            "sweep.trials=4", "optimizer.base_lr=tag(log,interval(1e-3,1e-1))",
        ]  # fmt: skip
        command = [sys.executable, str(CHECKOUT / "train.py"), "-m", *words, f"runs_root={tmp_path / runs}"]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)

    def results(runs: str):
        (folder,) = (tmp_path / runs / "sweeps").iterdir()
        return [(job.settings["optimizer.base_lr"], value) for job, value in read_results(folder).valued]

    assert start("whole").wait(300) == 0
    killed = start("killed")
    while killed.poll() is None and not list((tmp_path / "killed").glob("*/finished.json")):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").wait(300) == 0
    assert results("killed") == results("whole") and len(results("whole")) == 4
