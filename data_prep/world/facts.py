"""Facts of the made-up world in plain text, told or asked over a lettered list or in a form."""

from __future__ import annotations

import random

from data_prep.world.forms import LISTED, PICKED, form, shuffled
from data_prep.world.lexicon import (
    ANIMALS,
    MOVE_OF,
    MOVES,
    OPPOSITE_OF,
    WORDS,
    WORKPLACES,
    article,
    lettered,
)


def fact(rng: random.Random) -> str:
    return rng.choice((_opposite, _moving, _workplace, _comparison, _first_word, _first_letter))(rng)


def with_choices(
    question: str, value: str, pool: list[str], sentence: str, rng: random.Random, told: str | None = ""
) -> str:
    """A question with its answer in a sentence, often over a lettered list or in a form."""
    kind = rng.random()
    if kind < 0.25:
        return f"{question} {sentence}"
    if kind < 0.65:
        return form(question, value, pool, sentence, rng, rng.choice((told, told, None if told == "" else told)))
    choices, letter = shuffled(value, pool, rng)
    pick = rng.choice(PICKED).format(letter)
    ending = (pick, f"{pick} {sentence}", f"{sentence} {pick}")
    return f"{question} {rng.choice(LISTED).format(lettered(choices))} {rng.choice(ending)}"


def _opposite(rng: random.Random) -> str:
    word = rng.choice(list(OPPOSITE_OF))
    other = OPPOSITE_OF[word]
    question = rng.choice(("What is the opposite of {}?", "Which word is the opposite of {}?", "Not {}?")).format(word)
    pool = [w for w in OPPOSITE_OF if w != word]
    return with_choices(question, other, pool, f"The opposite of {word} is {other}.", rng)


def _moving(rng: random.Random) -> str:
    animal = rng.choice(ANIMALS)
    move = MOVE_OF[animal]
    if rng.random() < 0.5:
        return with_choices(f"Can {article(animal)} fly, swim or walk?", move, list(MOVES), f"It can {move}.", rng)
    pool = [animal] + [other for other in ANIMALS if MOVE_OF[other] != move]
    return with_choices(f"Which animal can {move}?", animal, pool, f"{article(animal).capitalize()} can {move}.", rng)


def _workplace(rng: random.Random) -> str:
    person, place = rng.choice(list(WORKPLACES.items()))
    sentence = f"A {person} works at a {place}."
    if rng.random() < 0.5:
        return with_choices(f"Where does a {person} work?", place, list(WORKPLACES.values()), sentence, rng)
    return with_choices(f"Who works at a {place}?", person, list(WORKPLACES), sentence, rng)


def _comparison(rng: random.Random) -> str:
    small, large = sorted(rng.sample(range(21), 2))
    first, second = rng.sample([small, large], 2)
    question = f"Which number is larger, {first} or {second}?"
    return rng.choice((f"{large} is more than {small}.", f"{question} {large} is larger."))


def _first_word(rng: random.Random) -> str:
    words = rng.sample(WORDS, rng.randint(2, 3))
    first = min(words)
    question = rng.choice(("Which word comes first in the alphabet?", "Which word is first in order?"))
    return with_choices(f"{question} {', '.join(words)}.", first, words, f"{first} comes first.", rng)


def _first_letter(rng: random.Random) -> str:
    word = rng.choice(WORDS)
    pool = [word] + [other for other in WORDS if other[0] != word[0]]
    sentence = f"{word} starts with {word[0]}."
    return with_choices(f"Which word starts with {word[0]}?", word, pool, sentence, rng)
