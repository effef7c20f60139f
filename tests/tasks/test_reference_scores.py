"""The scorer against published numbers, on the real test split (not in the repository)."""

import json
import subprocess
import sys

import pytest

from mmadapter.tasks import task_of
from mmadapter.tasks.papers import SCIENCEQA
from mmadapter.tasks.scienceqa_scores import COLUMNS
from mmadapter.tasks.section import Result
from mmadapter.tasks.settings import ScienceqaTaskSettings

pytestmark = pytest.mark.reference_data


def test_llava_13b_scores_as_published_to_the_last_digit(reference_data):
    folder = reference_data / "scienceqa"
    task = task_of(ScienceqaTaskSettings(problems=str(folder / "problems_test.json")))
    scores = task.score_file(folder / "results_llava_13b_v0.json").metrics
    assert scores["coverage"]["complete"] and scores["counts"]["Avg"] == 4241
    assert scores["official"] and "LLaVA-13B" in str(task.section([Result("ours", scores, [])]))
    assert "LLaVA-13B" not in str(task.section([Result("ours", scores, [])], with_papers=False))
    assert [scores["accuracy"][name] for name in COLUMNS] == [
        90.36, 95.95, 88.00, 89.49, 88.00, 90.66, 90.93, 90.90, 90.92,
    ]  # fmt: skip
    (row,) = (row for row in SCIENCEQA if row.model == "LLaVA-13B")
    assert scores["accuracy"] == dict(zip(COLUMNS, row.values, strict=True))


def test_the_command_writes_the_metrics_file(reference_data, checkout, tmp_path):
    folder = reference_data / "scienceqa"
    given = [f"predictions={folder / 'results_llava_13b_v0.json'}", f"task.problems={folder / 'problems_test.json'}"]
    command = [sys.executable, "eval.py", "task=scienceqa", *given, "task.split=test", f"output={tmp_path}"]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == {
        "NAT": 90.36, "SOC": 95.95, "LAN": 88.00, "TXT": 89.49, "IMG": 88.00, "NO": 90.66, "G1-6": 90.93,
        "G7-12": 90.90, "Avg": 90.92,
    }  # fmt: skip
    assert metrics["unanswered"] == 0 and metrics["counts"]["Avg"] == 4241 and metrics["coverage"]["complete"]
