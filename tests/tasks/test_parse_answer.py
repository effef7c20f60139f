"""The one answer parser of ScienceQA, on what models really say."""

import pytest

from mmadapter.tasks.scienceqa_scores import parse_answer

FOUR = ["the north", "1,234", "Both", "a warm coat."]

NAMED = [
    ("The answer is B.", 1),
    ("The answer is B", 1),
    (" The answer is (A)", 0),
    ("the answer is (C).", 2),
    ("The answer is: D", 3),
    ("Answer: B", 1),
    ("Answer: b.", 1),
    ("answer:\nC", 2),
    ("The correct answer is option D.", 3),
    ("**Answer:** B", 1),
    ("B", 1),
    ("b", 1),
    ("(B)", 1),
    ("( b )", 1),
    ("B.", 1),
    ("B. 1,234", 1),
    ("D) a warm coat.", 3),
    ("C, because both are true.", 2),
    ("Option C.", 2),
    ("A: the north", 0),
    ("I think (D) fits best.", 3),
    ("The answer is A. BECAUSE: the needle points to (B).", 0),
    ("Lecture text. Solution text. The answer is C.", 2),
    ("The answer is A. No: the answer is B.", 1),
    ("The answer is F. The answer is B.", 1),
    ("(A) is wrong, so it must be (C).", 0),
    ("It is not (A). It must be (C).", 2),
    ("The answer is B or B.", 1),
    ("the north", 0),
    ("The north.", 0),
    ("1,234", 1),
    ("Both", 2),
    ("The answer is a warm coat.", 3),
]

UNANSWERED = [
    "",
    "   \n",
    "F",
    "The answer is E.",
    "(Z)",
    "A dog is an animal",
    "Both of them",
    "1,23",
    "234",
    "I do not know.",
    "The answer is a dog.",
    "The answer is A or B.",
    "The answer is (A) and (C).",
    "A and B",
    "(A) or (B)",
    "A, B",
    "I would take (A) or (B)",
    "Neither",
    "?",
    "é",
]


@pytest.mark.parametrize(("text", "index"), NAMED)
def test_a_named_option_is_found(text, index):
    assert parse_answer(text, FOUR) == index


@pytest.mark.parametrize("text", UNANSWERED)
def test_what_names_no_single_option_is_unanswered(text):
    assert parse_answer(text, FOUR) is None


def test_a_letter_counts_only_when_the_option_exists():
    assert parse_answer("The answer is C.", ["one", "two"]) is None
    assert parse_answer("The answer is C.", ["one", "two", "three"]) == 2


def test_a_bare_letter_is_a_letter_even_where_it_is_also_an_options_text():
    assert parse_answer("B", ["B", "A"]) == 1


def test_an_options_text_that_begins_like_a_statement_wins_over_the_letter_in_it():
    assert parse_answer("The answer is A dog.", ["cat", "A dog"]) == 1
    assert parse_answer("E. coli", ["virus", "E. coli", "x", "y", "z"]) == 1


def test_two_options_with_the_same_text_are_not_told_apart_by_it():
    assert parse_answer("same", ["same", "same"]) is None
