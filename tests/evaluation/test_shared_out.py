"""Evaluation by several processes: the samples shared out, one result; with a host that is shared out too."""

from __future__ import annotations

import pytest

from mmadapter.evaluation.shared_out import OwnBatch, answers_of_all, own_batches
from tests.data.small_files import problem, write_scienceqa
from tests.distributed.checks_together import HELD, outcomes
from tests.evaluation.shared_checks import checks


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
    batches = list(own_batches([3, 9, 3], [False] * 3, 2, in_step=False))
    assert batches == [OwnBatch([1, 0], None, 2), OwnBatch([2], None, 3)]
    assert answers_of_all(lambda batch: [f"{index}" for index in batch.indices], iter(batches)) == ["0", "1", "2"]
