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
from mmadapter.sweeps.sweeper import fixed_words
from tests.training.tiny_run import save_inputs

pytest.importorskip("optuna", reason="needs the extra [search]")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mmadapter.sweeps.search import Search, corners_of, spaces_of

CHECKOUT = Path(__file__).parents[2]
SPACES = ["lr=tag(log,interval(1e-4,1e-1))", "layers=10,20,30", "width=tag(int,interval(1,8))"]


def parsed(*words: str):
    return OverridesParser.create().parse_overrides(list(words))


def opened(folder: Path, seed: int = 0) -> Search:
    return Search(folder, spaces_of(parsed(*SPACES)), direction="maximize", seed=seed)


def values_of(words: list[str]) -> dict[str, str]:
    return dict(word.split("=") for word in words)


def score(words) -> float:
    values = values_of(words)
    return -abs(math.log10(float(values["lr"])) + 2) - abs(int(values["layers"]) - 20) / 10 + int(values["width"]) / 8


def searched(folder: Path, trials: int, *, seed: int = 0, killed_at: tuple[int, ...] = (), parallel: int = 1):
    """The words of all trials of a search that is thrown away and opened again at some trials, before their result."""
    search = opened(folder, seed)
    asked: dict[int, list[str]] = {}
    killed = set(killed_at)
    batch = search.unfinished()
    while batch or search.asked < trials:
        while len(batch) < parallel and search.asked < trials:
            number, words = search.ask(parallel)
            batch[number] = words
        for number, words in batch.items():
            assert asked.setdefault(number, words) == words, "another trial after a kill"
        if killed & batch.keys():
            killed -= batch.keys()
            search = opened(folder, seed)
            batch = search.unfinished()
            continue
        for number, words in batch.items():
            search.tell(number, None if number == 3 else score(words))
        batch = {}
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
    assert opened(tmp_path / "b").ask(1) == (12, whole[12])


def test_trials_at_the_same_time_are_all_found_again(tmp_path):
    whole = searched(tmp_path / "a", 15, parallel=3)
    assert searched(tmp_path / "b", 15, parallel=3, killed_at=(4, 12)) == whole


def test_proposals_lie_in_their_spaces_and_follow_the_results(tmp_path):
    trials = searched(tmp_path / "a", 40)
    values = [values_of(words) for words in trials]
    rates = [float(one["lr"]) for one in values]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and min(rates) < 1e-3 and max(rates) > 1e-2
    assert {one["layers"] for one in values} == {"10", "20", "30"}
    assert {int(one["width"]) for one in values} <= set(range(1, 9))
    early, late = (sum(score(one) for one in part) / len(part) for part in (trials[:10], trials[-10:]))
    assert late > early + 0.3, "the search has not learned"


def test_what_cannot_be_searched_is_refused():
    for words in ("lr=interval(1.0,0.1)", "lr=tag(log,interval(0.0,1.0))", "lr=range(9,2,-3)"):
        with pytest.raises(InputError, match="lr: cannot be searched"):
            spaces_of(parsed(words))
    with pytest.raises(InputError, match="needs a setting to search in"):
        spaces_of(parsed("f=1"))


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
        "a": FloatDistribution(1e-4, 1e-1, log=True),
        "b": FloatDistribution(0.0, 1.0),
        "c": IntDistribution(1, 8),
        "d": CategoricalDistribution(["x", "y"]),
        "e": IntDistribution(2, 8, step=3),
    }
    assert fixed_words(words) == ["f=1"]


def test_the_corners_of_a_search_vary_one_setting_at_a_time():
    assert corners_of(spaces_of(parsed("a=interval(0,1)", "b=x,y"))) == {
        "a=0.0": ["a=0.0", "b=x"],
        "a=1.0": ["a=1.0", "b=x"],
        "b=x": ["a=0.0", "b=x"],
        "b=y": ["a=0.0", "b=y"],
    }


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_the_same_trials(tmp_path):
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
