"""Quizzes in the world's plain text: lettered lists, what is picked from them, and forms with labelled lines.

The labels are many and none of them is a word of ScienceQA's or Alpaca's template: a host that has read them knows
what a form is, and still has to be taught the task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.world.lexicon import LETTERS, lettered

PICKED = ("Pick: {}.", "I pick {}.", "Its letter is {}.", "It is {}.", "Letter {}.", "{} fits.", "{} it is.")
LISTED = ("Here is a list: {}.", "Which one? {}.", "Choose: {}.", "{}.", "The list: {}.", "One of {}.")
ASKING = ("Asked", "Q", "Riddle", "Puzzle", "Exercise", "Quiz")
GIVEN = ("Given", "Told", "Text", "Note", "Known")
NOTHING = ("nothing", "N/A", "nothing at all", "no text")
LISTING = ("Choices", "List", "Words", "Cards", "Pick one")
REPLYING = ("Reply", "So", "Solved", "Result", "Found")


def shuffled(value: str, values: Sequence[str], rng: random.Random) -> tuple[list[str], str]:
    """Two to five choices with `value` among them, and its letter."""
    count = rng.randint(2, min(5, len(values)))
    choices = rng.sample([other for other in values if other != value], count - 1)
    choices.insert(rng.randrange(count), value)
    return choices, LETTERS[choices.index(value)]


def form(
    question: str, value: str, pool: Sequence[str], sentence: str, rng: random.Random, told: str | None = None
) -> str:
    """A quiz in labelled lines: the question, what is told (if anything), the list, a sentence, the letter."""
    choices, letter = shuffled(value, pool, rng)
    lines = [f"{rng.choice(ASKING)}: {question}"]
    if told is not None:
        lines.append(f"{rng.choice(GIVEN)}: {told or rng.choice(NOTHING)}")
    if rng.random() < 0.2:
        rng.shuffle(lines)
    lines.append(f"{rng.choice(LISTING)}: {lettered(choices)}")
    lines.append(f"{rng.choice(REPLYING)}: {sentence} {rng.choice(PICKED).format(letter)}")
    return "\n".join(lines)
