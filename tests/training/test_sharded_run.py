"""Runs with engine=zero3: a host that no process holds whole is trained upon, asked in between, and saved whole."""

from __future__ import annotations

import pytest

from tests.distributed.checks_together import HELD, outcomes
from tests.training.sharded_run_checks import checks
from tests.training.tiny_run import save_models


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "models").mkdir()
    save_models(folder / "models")
    return outcomes(checks, folder)


@pytest.mark.parametrize("check", [*checks(None), "the end"])
def test_two_processes_run_on_a_shared_host(check, two):
    outcome = two.get(check, two["the end"])
    assert outcome == HELD, outcome
