"""ScienceQA's score columns, on small made questions."""

from mmadapter.tasks.scienceqa import ScienceQA
from mmadapter.tasks.scienceqa_scores import random_choice, score, topic_accuracy
from mmadapter.tasks.section import Result


def made(answer=0, subject="natural science", grade="grade3", hint=False, image=False, topic=""):
    fields = {"question": "?", "choices": ["a", "b", "c"], "answer": answer, "subject": subject, "grade": grade}
    return {**fields, "topic": topic, "has_hint": hint, "has_image": image}


QUESTIONS = {
    "1": made(hint=True, image=True),
    "2": made(subject="language science", grade="grade12"),
    "3": made(hint=True, grade="grade6", topic="maps"),
    "4": made(image=True, grade="grade7", topic="maps"),
}


def test_a_question_with_hint_and_image_counts_in_both_columns():
    scores = score(QUESTIONS, {"1": 0, "2": 0, "3": 1, "4": 0}, split_size=4)
    assert scores["counts"] == {
        "NAT": 3, "SOC": 0, "LAN": 1, "TXT": 2, "IMG": 2, "NO": 1, "G1-6": 2, "G7-12": 2, "Avg": 4,
    }  # fmt: skip
    assert scores["accuracy"]["TXT"] == 50.0
    assert scores["accuracy"]["IMG"] == 100.0
    assert scores["accuracy"]["Avg"] == 75.0
    assert scores["coverage"]["complete"] and scores["label"] == "test split, all 4 questions"


def test_an_empty_group_is_not_available():
    assert score(QUESTIONS, {"1": 0}, split_size=4)["accuracy"]["SOC"] is None


def test_percentages_have_two_decimals():
    assert score(QUESTIONS, {"1": 0, "2": 0, "3": 1}, split_size=4)["accuracy"]["Avg"] == 66.67


def test_unanswered_is_counted_and_wrong():
    scores = score(QUESTIONS, {"1": None, "2": 0}, split_size=4)
    assert scores["unanswered"] == 1 and scores["guessed"] == 0
    assert scores["accuracy"]["Avg"] == 50.0


def test_a_subset_is_never_called_the_split():
    scores = score(QUESTIONS, {"1": 0, "2": 0}, split="test", split_size=4)
    assert scores["label"] == "subset: 2 of the 4 questions of test, not the test score"
    assert scores["coverage"] == {"scored": 2, "split": 4, "complete": False}


def test_without_a_known_split_size_nothing_is_complete():
    assert not score(QUESTIONS, {"1": 0})["coverage"]["complete"]


def test_the_random_fallback_depends_on_seed_and_question_only():
    nothing = dict.fromkeys(QUESTIONS)
    forwards = score(QUESTIONS, nothing, split_size=4, fallback_seed=3)
    backwards = score(QUESTIONS, dict(reversed(nothing.items())), split_size=4, fallback_seed=3)
    assert forwards == backwards
    assert forwards["guessed"] == forwards["unanswered"] == 4
    guesses = {random_choice("1", QUESTIONS["1"], seed) for seed in range(50)}
    assert guesses == {0, 1, 2}


def test_accuracy_by_topic():
    assert topic_accuracy(QUESTIONS, {"1": 0, "3": 0, "4": 1}) == {"maps": {"accuracy": 50.0, "count": 2}}


def test_columns_without_a_question_leave_the_table():
    questions = {"1": made(subject="", grade="", hint=True), "2": made(subject="", grade="")}
    section = ScienceQA.section([Result("ours", score(questions, {"1": 0, "2": 1}), [])], with_papers=False)
    assert section.tables[0].header == ("accuracy, %", "TXT", "NO", "Avg")
    assert section.tables[0].rows[0].cells == ["ours", "100.00", "0.00", "50.00"]
