"""The scorer against published numbers, on the real test split (not in the repository)."""

import pytest

from mmadapter.evaluation.papers import SCIENCEQA_COLUMNS, scienceqa_rows
from mmadapter.evaluation.predictions import read_predictions
from mmadapter.evaluation.questions import read_questions
from mmadapter.evaluation.scienceqa import score

pytestmark = pytest.mark.reference_data


def test_llava_13b_scores_as_published_to_the_last_digit(reference_data):
    folder = reference_data / "scienceqa"
    questions, size = read_questions("test", problems=folder / "problems_test.json")
    predictions = read_predictions(folder / "results_llava_13b_v0.json", questions)
    scores = score(questions, predictions.indices, split_size=size)
    assert scores.complete and scores.counts["Avg"] == 4241
    assert [scores.accuracy[name] for name in SCIENCEQA_COLUMNS] == [
        90.36, 95.95, 88.00, 89.49, 88.00, 90.66, 90.93, 90.90, 90.92,
    ]  # fmt: skip
    (row,) = scienceqa_rows(("LLaVA-13B",))
    assert scores.accuracy == row.accuracy
