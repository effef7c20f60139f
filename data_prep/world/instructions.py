"""Instructions in Alpaca's layout: word play, told scenes, captions of told scenes; open questions about pictures."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from data_prep.world.captions import captions, statements, tags
from data_prep.world.lexicon import ANIMALS, ASKED, MOVE_OF, NUMBER_WORDS, OPPOSITE_OF, WORDS, WORKPLACES, article
from data_prep.world.scenes import VALUES, Scene, random_scene
from mmadapter.data.templates import CAPTION_INSTRUCTION

Record = dict[str, str]


def instruction_records(seed: int, count: int) -> list[Record]:
    """Language-only instructions with exact answers: order, repeat, count, compare, spell and facts."""
    return _different(f"instructions {seed}", count, lambda rng: rng.choice(_WORD_PLAY)(rng))


def following_records(seed: int, count: int) -> list[Record]:
    """Language-only instructions that the tiny LLaMA can learn to follow: told scenes asked about, and facts it knows.

    Those of `instruction_records` are beyond a host of four layers; whether following gets lost can only be seen where
    it was there. No wording asks about a picture.
    """
    return _different(f"following {seed}", count, lambda rng: rng.choice(_FOLLOWING)(rng))


def told_caption_records(seed: int, count: int) -> list[Record]:
    """Requests for a caption of a scene that is told in words; any of its five captions is right."""
    return _different(f"told captions {seed}", count, _caption)


def _different(name: str, count: int, write: Callable[[random.Random], Record]) -> list[Record]:
    """`count` different records in random order, a pure function of the name."""
    rng = random.Random(name)
    records: dict[tuple[str, str], Record] = {}
    while len(records) < count:
        record = write(rng)
        records.setdefault((record["instruction"], record["input"]), record)
    return list(records.values())


def _record(instruction: str, given: str, output: str) -> Record:
    return {"instruction": instruction, "input": given, "output": output}


# Word play.


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
    asked, given = (f"Spell {word}.", "") if rng.random() < 0.5 else ("Spell the word.", word)
    return _record(asked, given, " ".join(word))


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


_WORD_PLAY = (_order, _reverse, _repeat, _repeat, _count, _first_last, _compare, _compare, _spell, _opposite, _fact)

# Told scenes, and facts that the tiny LLaMA has read in the same words.


def _told(scene: Scene, asked: str, rng: random.Random) -> str:
    """The scene in words, the asked attribute among them: a caption, single words, or sentences."""
    others = [name for name in VALUES if name != asked]
    names = [asked, *rng.sample(others, rng.randint(1, 3))]
    rng.shuffle(names)
    form = rng.randrange(3)
    if form == 0:
        return rng.choice(captions(scene))
    return f"{tags(scene, rng, names)}." if form == 1 else " ".join(statements(scene, rng, names))


def _answer(rng: random.Random) -> Record:
    """A question about a told scene, answered in a sentence."""
    scene = random_scene(rng)
    name = rng.choice(["color", "shape", "size", "pattern", "ground"])
    value = scene.value(name)
    sentence = {"shape": f"It is a {value}.", "ground": f"The background is {value}."}.get(name, f"It is {value}.")
    return _record(rng.choice(ASKED[name][:1] if name == "ground" else ASKED[name]), _told(scene, name, rng), sentence)


def _name(rng: random.Random) -> Record:
    """The same scenes, another order for another kind of answer."""
    scene = random_scene(rng)
    name = rng.choice(list(VALUES))
    spoken = "background" if name == "ground" else name
    return _record(f"Name the {spoken}.", _told(scene, name, rng), f"The {spoken} is {scene.value(name)}.")


def _choose(rng: random.Random) -> Record:
    scene = random_scene(rng)
    name = rng.choice(list(VALUES))
    value = scene.value(name)
    first, second = rng.sample([value, rng.choice([other for other in VALUES[name] if other != value])], 2)
    return _record(f"Is it {first} or {second}?", _told(scene, name, rng), f"It is {value}.")


def _known_opposite(rng: random.Random) -> Record:
    word = rng.choice(list(OPPOSITE_OF))
    asked = rng.choice(("What is the opposite of {}?", "Which word is the opposite of {}?", "Not {}?")).format(word)
    return _record(asked, "", f"The opposite of {word} is {OPPOSITE_OF[word]}.")


def _known_move(rng: random.Random) -> Record:
    animal = rng.choice(ANIMALS)
    asked = rng.choice(("Can {} fly, swim or walk?", "What can {} do?")).format(article(animal))
    return _record(asked, "", f"It can {MOVE_OF[animal]}.")


def _known_workplace(rng: random.Random) -> Record:
    person, place = rng.choice(list(WORKPLACES.items()))
    asked = rng.choice((f"Where does a {person} work?", f"Who works at a {place}?"))
    return _record(asked, "", f"A {person} works at a {place}.")


def _caption(rng: random.Random) -> Record:
    scene = random_scene(rng)
    as_tags = rng.choice((True, False))
    told = f"{tags(scene, rng, list(VALUES))}." if as_tags else " ".join(statements(scene, rng, list(VALUES)))
    return _record(CAPTION_INSTRUCTION, told, rng.choice(captions(scene)))


_FOLLOWING = (_answer, _answer, _name, _name, _choose, _known_opposite, _known_move, _known_workplace)

# Open questions about pictures. No wording stands in captions, instructions, or the text that the tiny LLaMA has read.
WORDINGS = {
    "color": ("Tell me the color of the largest shape.", "Look at the picture. Which color does the shape have?"),
    "shape": ("Tell me what the largest shape is.", "Look at the picture. Which shape does it show?"),
    "size": ("Tell me the size of the largest shape.", "Look at the picture. Which size does the shape have?"),
    "pattern": ("Tell me the pattern of the largest shape.", "Look at the picture. Which pattern does the shape have?"),
    "place": ("Tell me the place of the largest shape.", "Look at the picture. Which place does the shape have?"),
    "ground": ("Tell me the color of the background.", "Look at the picture. Which color does the background have?"),
}


def open_questions(scene: Scene, image: str, rng: random.Random) -> list[dict[str, Any]]:
    """One item an attribute of a scene with one object, in one of its wordings; `image` is the picture's path.

    With the words that a right answer holds, and those that it must not hold.
    """
    assert scene.companion is None, "with two objects an attribute has two values"
    return [
        {
            "instruction": rng.choice(WORDINGS[name]),
            "image": image,
            "attribute": name,
            "answer": scene.value(name),
            "wrong": [value for value in values if value != scene.value(name)],
            "unasked": [value for other in VALUES if other != name for value in VALUES[other]],
        }
        for name, values in VALUES.items()
    ]
