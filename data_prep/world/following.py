"""Language-only instructions that the tiny LLaMA can learn to follow: told scenes asked about, and facts it knows.

The instructions of `instructions.py` (order, count, spell) are beyond a host of four layers; whether following gets
lost can only be seen where it was there. No wording asks about a picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from data_prep.world.captions import captions, statements, tags
from data_prep.world.lexicon import ANIMALS, MOVE_OF, OPPOSITE_OF, WORKPLACES, article
from data_prep.world.scenes import VALUES, Scene, random_scene
from mmadapter.data.templates import CAPTION_INSTRUCTION

Record = dict[str, str]
SPOKEN = {**{name: name for name in VALUES}, "ground": "background"}
QUESTIONS = {
    "color": ("What color is it?", "What color is the shape?", "Which color do you see?"),
    "shape": ("What shape is it?", "Which shape do you see?", "What is it?"),
    "size": ("What size is it?", "How large is the shape?"),
    "pattern": ("What pattern is it?", "Which pattern do you see?"),
    "ground": ("What color is the background?",),
}
MOST_OTHERS = 3  # attributes that are told besides the one that is asked


def following_records(seed: int, count: int) -> list[Record]:
    """`count` different records in random order, a pure function of the seed."""
    rng = random.Random(f"following {seed}")
    records: dict[tuple[str, str], Record] = {}
    while len(records) < count:
        record = rng.choice(_KINDS)(rng)
        records.setdefault((record["instruction"], record["input"]), record)
    return list(records.values())


def told_caption_records(seed: int, count: int) -> list[Record]:
    """`count` different requests for a caption of a scene that is told in words; any of its five captions is right."""
    rng = random.Random(f"told captions {seed}")
    records: dict[str, Record] = {}
    while len(records) < count:
        scene = random_scene(rng)
        write = rng.choice((lambda *given: f"{tags(*given)}.", lambda *given: " ".join(statements(*given))))
        told = write(scene, rng, list(VALUES))
        records.setdefault(told, _record(CAPTION_INSTRUCTION, told, rng.choice(captions(scene))))
    return list(records.values())


def _record(instruction: str, given: str, output: str) -> Record:
    return {"instruction": instruction, "input": given, "output": output}


def _told(scene: Scene, asked: str, rng: random.Random) -> str:
    """The scene in words, the asked attribute among them: a caption, single words, or sentences."""
    others = [name for name in VALUES if name != asked]
    names = [asked, *rng.sample(others, rng.randint(1, MOST_OTHERS))]
    rng.shuffle(names)
    form = rng.randrange(3)
    if form == 0:
        return rng.choice(captions(scene))
    return f"{tags(scene, rng, names)}." if form == 1 else " ".join(statements(scene, rng, names))


def _answer(scene: Scene, rng: random.Random) -> Record:
    """A question about a told scene, answered in a sentence."""
    name = rng.choice(list(QUESTIONS))
    value = scene.value(name)
    sentence = {"shape": f"It is a {value}.", "ground": f"The background is {value}."}.get(name, f"It is {value}.")
    return _record(rng.choice(QUESTIONS[name]), _told(scene, name, rng), sentence)


def _name(scene: Scene, rng: random.Random) -> Record:
    """The same scenes, another order for another kind of answer."""
    name = rng.choice(list(VALUES))
    return _record(f"Name the {SPOKEN[name]}.", _told(scene, name, rng), f"The {SPOKEN[name]} is {scene.value(name)}.")


def _choose(scene: Scene, rng: random.Random) -> Record:
    name = rng.choice(list(VALUES))
    value = scene.value(name)
    first, second = rng.sample([value, rng.choice([other for other in VALUES[name] if other != value])], 2)
    return _record(f"Is it {first} or {second}?", _told(scene, name, rng), f"It is {value}.")


def _about_a_scene(write: Callable[[Scene, random.Random], Record]) -> Callable[[random.Random], Record]:
    return lambda rng: write(random_scene(rng), rng)


def _opposite(rng: random.Random) -> Record:
    word = rng.choice(list(OPPOSITE_OF))
    asked = rng.choice(("What is the opposite of {}?", "Which word is the opposite of {}?", "Not {}?")).format(word)
    return _record(asked, "", f"The opposite of {word} is {OPPOSITE_OF[word]}.")


def _move(rng: random.Random) -> Record:
    animal = rng.choice(ANIMALS)
    asked = rng.choice(("Can {} fly, swim or walk?", "What can {} do?")).format(article(animal))
    return _record(asked, "", f"It can {MOVE_OF[animal]}.")


def _workplace(rng: random.Random) -> Record:
    person, place = rng.choice(list(WORKPLACES.items()))
    asked = rng.choice((f"Where does a {person} work?", f"Who works at a {place}?"))
    return _record(asked, "", f"A {person} works at a {place}.")


_KINDS = (
    _about_a_scene(_answer),
    _about_a_scene(_answer),
    _about_a_scene(_name),
    _about_a_scene(_name),
    _about_a_scene(_choose),
    _opposite,
    _move,
    _workplace,
)
