"""Evaluation by several processes: the samples shared out, one result; with a host that is shared out too."""

from __future__ import annotations

import pytest

from mmadapter.distributed.ranks import Ranks
from mmadapter.tasks.asking import ask_in_batches
from tests.data.small_files import problem, write_scienceqa
from tests.distributed.checks_together import HELD, outcomes
from tests.tasks.shared_checks import BLANK, checks


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    problems = {
        "5": problem(split="test"),
        "6": problem(split="test", answer=1),
        "7": problem(split="test", question="A much longer question, " * 9, choices=["x", "y", "z"], answer=2),
    }
    write_scienceqa(folder / "data", problems)
    return outcomes(checks, folder)


@pytest.mark.parametrize("check", [*checks(None), "the end"])
def test_two_processes_evaluate_together(check, two):
    outcome = two.get(check, two["the end"])
    assert outcome == HELD, outcome


def test_one_process_asks_everything():
    asked, told = [], []

    def ask(indices, visual):
        asked.append((list(indices), visual))
        return [str(index) for index in indices]

    answers = ask_in_batches(
        ask, [3, 9, 3], [BLANK] * 3, 2, Ranks(), what="x", progress=lambda *what: told.append(what)
    )
    assert answers == ["0", "1", "2"] and asked == [([1, 0], None), ([2], None)]
    assert told == [("x", 2, 3), ("x", 3, 3)]
