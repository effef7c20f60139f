"""Language-only instructions with exact answers, as Alpaca records: order, repeat, count, compare, spell and facts."""

from __future__ import annotations

import random

from data_prep.world.lexicon import MOVE_OF, NUMBER_WORDS, OPPOSITE_OF, WORDS, WORKPLACES, article

Record = dict[str, str]


def instruction_records(seed: int, count: int) -> list[Record]:
    """`count` different records in random order, a pure function of the seed."""
    rng = random.Random(f"instructions {seed}")
    records: dict[tuple[str, str], Record] = {}
    while len(records) < count:
        record = rng.choice(_KINDS)(rng)
        records.setdefault((record["instruction"], record["input"]), record)
    return list(records.values())


def _record(instruction: str, given: str, output: str) -> Record:
    return {"instruction": instruction, "input": given, "output": output}


def _row(rng: random.Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(2, 5))


def _order(rng: random.Random) -> Record:
    words = _row(rng)
    return _record("Put the words in order.", ", ".join(words), ", ".join(sorted(words)))


def _reverse(rng: random.Random) -> Record:
    words = _row(rng)
    return _record("Write the words in reverse order.", ", ".join(words), ", ".join(words[::-1]))


def _repeat(rng: random.Random) -> Record:
    words = ", ".join(_row(rng))
    if rng.random() < 0.5:
        return _record("Write the words again.", words, words)
    return _record(f"Say {words}.", "", words)


def _count(rng: random.Random) -> Record:
    words = _row(rng)
    return _record("How many words?", ", ".join(words), f"There are {NUMBER_WORDS[len(words)]} words.")


def _first_last(rng: random.Random) -> Record:
    words, which = _row(rng), rng.choice(("first", "last"))
    answer = words[0] if which == "first" else words[-1]
    return _record(f"What is the {which} word?", ", ".join(words), f"The {which} word is {answer}.")


def _compare(rng: random.Random) -> Record:
    first, second = rng.sample(range(21), 2)
    return _record(f"Which number is larger, {first} or {second}?", "", f"{max(first, second)} is larger.")


def _spell(rng: random.Random) -> Record:
    word = rng.choice(WORDS)
    return (
        _record(f"Spell {word}.", "", " ".join(word))
        if rng.random() < 0.5
        else _record("Spell the word.", word, " ".join(word))
    )


def _opposite(rng: random.Random) -> Record:
    word = rng.choice(list(OPPOSITE_OF))
    answer = f"The opposite of {word} is {OPPOSITE_OF[word]}."
    if rng.random() < 0.5:
        return _record(f"What is the opposite of {word}?", "", answer)
    return _record("What is the opposite of the word?", word, answer)


def _fact(rng: random.Random) -> Record:
    if rng.random() < 0.5:
        animal = rng.choice(list(MOVE_OF))
        return _record(f"Can {article(animal)} fly, swim or walk?", "", f"It can {MOVE_OF[animal]}.")
    person = rng.choice(list(WORKPLACES))
    return _record(f"Where does a {person} work?", "", f"A {person} works at a {WORKPLACES[person]}.")


_KINDS = (_order, _reverse, _repeat, _repeat, _count, _first_last, _compare, _compare, _spell, _opposite, _fact)
