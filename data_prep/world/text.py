"""The world's plain text, which the tiny LLaMA learns from: told scenes, facts, lists, counting, small talk.

No document uses ScienceQA's or Alpaca's prompt template: the tasks stay unseen until an adapter learns them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from data_prep.world.captions import WHERE, attribute_names, captions, statements, tags
from data_prep.world.facts import fact, with_choices
from data_prep.world.forms import LISTED, PICKED, form, shuffled
from data_prep.world.lexicon import (
    ANIMALS,
    FOODS,
    GREETINGS,
    LETTERS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITE_OF,
    THINGS,
    WORDS,
    WORKPLACES,
    lettered,
)
from data_prep.world.scenes import VALUES, Scene, random_pair, random_scene

ASKED = {
    "color": ("What color is it?", "What color is the shape?", "Which color do you see?"),
    "shape": ("What shape is it?", "Which shape do you see?", "What is it?"),
    "size": ("What size is it?", "How large is the shape?"),
    "pattern": ("What pattern is it?", "Which pattern do you see?"),
    "place": ("Where is it?", "Where is the shape?"),
    "ground": ("What color is the background?", "What is behind the shape?"),
}
LOOKED_UP = (
    "{word} {letter}.", "{word}: {letter}.", "{word} is {letter}.", "{word} is {letter}.",
    "The letter of {word} is {letter}.", "I want {word}: {letter}.", "Take {word}. Its letter is {letter}.",
    "{letter} is {word}.", "It is {word}. Pick: {letter}.",
)  # fmt: skip
# Small talk also holds the words of the prompt templates, so that an adapter meets no word that the host never saw.
SMALL_TALK = (
    "That is a good question. The answer is easy.", "Question after question came, and no answer was found.",
    "Answer me, please.", "Answer when you can.", "Options are good to have.", "There are two options.",
    "Context is all.", "We need more context to answer.", "N/A means there is nothing to tell.",
    "Below is a list of words.", "Write a letter to a friend.", "Write it down.", "An instruction tells what to do.",
    "Instruction comes first.", "The response came late.", "Response and request go together.",
    "The request was kind.", "This task is hard.", "Describe the task.", "Mia describes a picture.",
    "The words were paired with a picture.", "The input is short.", "Input goes in, response goes out.",
    "She provides further context.", "He appropriately completes the work.", "It is appropriately large.",
    "Generate a new word.", "Caption the picture.", "A caption tells what is in the image.", "This image is small.",
    "The image is on the wall.", "How are you? I am well, thanks.", "Good day to you.", "Look at the map.",
    "The map shows the land.", "Read the sentence.", "The sentence is true.", "The sentence is false.",
    "BECAUSE of the rain we stay.", "The solution is easy.", "The lecture was long.", "Hint: look again.",
)  # fmt: skip


def world_texts(seed: int | str = 0) -> Iterator[str]:
    """Endless plain-text documents, a pure function of the seed."""
    rng = random.Random(f"text {seed}")
    while True:
        yield document(rng)


def document(rng: random.Random) -> str:
    """One document of a random kind."""
    kinds, weights = zip(*_KINDS, strict=True)
    kind: Callable[[random.Random], str] = rng.choices(kinds, weights)[0]
    return kind(rng)


def scene_document(rng: random.Random) -> str:
    """A scene is told in some form; long talk about it follows, with other talk in between."""
    scene = random_scene(rng)
    names = attribute_names(rng, least=2)
    parts = [_told(scene, rng, names)]
    for name in rng.sample(names, rng.randint(1, min(4, len(names)))):
        if rng.random() < 0.2:
            parts.append(_small_talk(rng))
        parts.append(_remark(scene, rng, names, name))
    return _join(parts, rng)


def unseen_document(rng: random.Random) -> str:
    """A form about a scene that nobody told: any value may be right, but the sentence and the letter agree."""
    scene, name = random_scene(rng), rng.choice(list(VALUES))
    told = rng.choice(("", "", None, f"Look at the picture of {rng.choice(NAMES)}."))
    value = scene.value(name)
    return form(rng.choice(ASKED[name]), value, VALUES[name], _spoken(name, value, rng), rng, told)


def pair_document(rng: random.Random) -> str:
    """Two objects: the scene is told twice in other words, and asked about."""
    scene = random_pair(rng)
    other = scene.companion
    assert other is not None
    told, again = rng.sample(captions(scene), 2)
    parts = [told]
    if rng.random() < 0.5:
        asked, color = rng.choice(((scene.shape, scene.color), (other.shape, other.color)))
        parts.append(f"What color is the {asked}? The {asked} is {color}.")
    parts.append(again)
    return _join(parts, rng)


def _told(scene: Scene, rng: random.Random, names: list[str]) -> str:
    if len(names) == len(VALUES) and rng.random() < 0.7:
        return rng.choice(captions(scene))
    if rng.random() < 0.5:
        opening = rng.choice(("Seen: ", "The picture: ", "In the image: ", "Mia sees: ", "Look: ", ""))
        return f"{opening}{tags(scene, rng, names)}."
    return " ".join(statements(scene, rng, names))


def _remark(scene: Scene, rng: random.Random, names: list[str], name: str) -> str:
    """One thing said about a told scene, mostly about the attribute `name`."""
    value = scene.value(name)
    kind = rng.random()
    if kind < 0.6:
        return _look_up(name, value, rng)
    if kind < 0.7:
        return f"{rng.choice(ASKED[name])} {_spoken(name, value, rng)}"
    if kind < 0.8:
        wrong = rng.choice([v for v in VALUES[name] if v != value])
        first, second = rng.sample([value, wrong], 2)
        return f"Is it {first} or {second}? It is {value}."
    if kind < 0.88:
        return f"Seen: {tags(scene, rng, names)}."
    if len(names) == len(VALUES):
        return rng.choice(captions(scene))
    return " ".join(statements(scene, rng, names))


def _look_up(name: str, value: str, rng: random.Random) -> str:
    """A lettered list of values of one attribute, and the letter that fits the told scene."""
    if rng.random() < 0.4:
        told = rng.choice(("", None))
        return form(rng.choice(ASKED[name]), value, VALUES[name], _spoken(name, value, rng), rng, told)
    choices, letter = shuffled(value, list(VALUES[name]), rng)
    question = rng.choice((*ASKED[name], "", "", "Look again.", f"The {name}?"))
    listed = rng.choice(LISTED).format(lettered(choices))
    pick = rng.choice(PICKED).format(letter)
    said = rng.random()
    if said < 0.2:
        pick = f"{pick} {_spoken(name, value, rng)}"
    elif said < 0.6:
        pick = f"{_spoken(name, value, rng)} {pick}"
    return " ".join(part for part in (question, listed, pick) if part)


def _spoken(name: str, value: str, rng: random.Random) -> str:
    if name == "place":
        return f"It is {WHERE[value]}."
    if name == "shape":
        return f"It is a {value}."
    if name == "ground":
        return f"The background is {value}."
    return rng.choice(("It is {}.", "The shape is {}.")).format(value)


def first_lessons(seed: int | str = 0) -> Iterator[str]:
    """Endless lettered lists, read in one fixed form, of the words that make the shortest lessons."""
    rng = random.Random(f"lessons {seed}")
    while True:
        choices = _some_choices(rng)
        words = rng.sample(choices, len(choices))
        yield f"{lettered(choices)} " + " ".join(f"{word} is {LETTERS[choices.index(word)]}." for word in words)


def _some_choices(rng: random.Random) -> list[str]:
    others = (ANIMALS, THINGS, FOODS, NAMES, WORDS, tuple(WORKPLACES.values()), tuple(OPPOSITE_OF), NUMBER_WORDS)
    pool = rng.choice((*VALUES.values(), *VALUES.values(), *others, GREETINGS))
    return rng.sample(list(pool), rng.randint(2, min(5, len(pool))))


def list_document(rng: random.Random) -> str:
    """Lettered lists of any words, read in both directions."""
    choices = _some_choices(rng)
    if rng.random() < 0.25:
        listed = ", ".join(f"{choice} ({letter})" for letter, choice in zip(LETTERS, choices, strict=False))
    else:
        listed = lettered(choices)
    parts = [rng.choice(LISTED).format(listed)]
    form = rng.choice(LOOKED_UP) if rng.random() < 0.6 else None
    for word in rng.sample(choices, len(choices)):
        parts.append((form or rng.choice(LOOKED_UP)).format(word=word, letter=LETTERS[choices.index(word)]))
    if rng.random() < 0.2:
        parts.append(f"Again: {listed}.")
    return rng.choice((" ", " ", "\n")).join(parts)


def fact_document(rng: random.Random) -> str:
    """Facts one after the other; then some of them again by letter."""
    return _join([fact(rng) for _ in range(rng.randint(2, 6))], rng)


def people_document(rng: random.Random) -> str:
    """Told facts about people, animals and things; then asked again."""
    told, quizzes = [], []
    kind = rng.choice(("sells", "says", "has", "color"))
    pool = {"sells": FOODS, "says": GREETINGS, "has": THINGS, "color": VALUES["color"]}[kind]
    subjects = rng.sample(ANIMALS if kind == "color" else NAMES, rng.randint(1, 3))
    for subject, value in zip(subjects, rng.sample(pool, len(subjects)), strict=True):
        if kind == "color":
            told.append(f"The {subject} is {value}.")
            question, sentence = f"What color is the {subject}?", f"The {subject} is {value}."
        else:
            told.append(f"{subject} {kind} {value}.")
            question, sentence = f"What does {subject} {kind[:-1] if kind != 'has' else 'have'}?", told[-1]
        quizzes.append((question, value, list(pool), sentence))
    if rng.random() < 0.5:
        rng.shuffle(told)
        return form(*rng.choice(quizzes), rng, " ".join(told))
    asked = [with_choices(*quiz, rng, None) for quiz in quizzes]
    rng.shuffle(asked)
    if rng.random() < 0.3:
        told.append(_small_talk(rng))
    return _join(told + asked, rng)


def word_document(rng: random.Random) -> str:
    """Words repeated, counted, ordered, turned around and spelled."""
    return _join([_word_play(rng) for _ in range(rng.randint(1, 3))], rng)


def _word_play(rng: random.Random) -> str:
    words = rng.sample(WORDS, rng.randint(2, 5))
    row = ", ".join(words)
    count = NUMBER_WORDS[len(words)]
    kind = rng.randrange(6)
    if kind == 0:
        return f"Say {row}. Again: {row}."
    if kind == 1:
        return f"{row}. In order: {', '.join(sorted(words))}."
    if kind == 2:
        return f"{row}. In reverse order: {', '.join(words[::-1])}."
    if kind == 3:
        return f"{row}. How many words? There are {count} words."
    if kind == 4:
        return f"{row}. The first word is {words[0]}. The last word is {words[-1]}."
    return f"Spell {words[0]}: {' '.join(words[0])}. The word {words[0]} starts with {words[0][0]}."


def counting_document(rng: random.Random) -> str:
    """Numbers and letters in a row, up and down."""
    start = rng.randint(0, 10)
    numbers = [str(number) for number in range(start, rng.randint(start + 3, 20) + 1)]
    words = list(NUMBER_WORDS[rng.randint(0, 5) : rng.randint(7, 11)])
    letters = list("abcdefghijklmnopqrstuvwxyz"[rng.randint(0, 10) : rng.randint(14, 26)])
    row = rng.choice((numbers, words, letters))
    return f"Count: {' '.join(row)}." if rng.random() < 0.6 else f"Backwards: {' '.join(row[::-1])}."


def _small_talk(rng: random.Random) -> str:
    return rng.choice(SMALL_TALK)


def talk_document(rng: random.Random) -> str:
    """Small talk."""
    return _join([_small_talk(rng) for _ in range(rng.randint(2, 5))], rng)


def _join(parts: list[str], rng: random.Random) -> str:
    """Sentences on one line or on lines of their own, first letters large."""
    separator = "\n" if rng.random() < 0.35 else " "
    return separator.join(part[0].upper() + part[1:] for part in parts)


_KINDS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (scene_document, 0.33),
    (unseen_document, 0.15),
    (list_document, 0.15),
    (people_document, 0.12),
    (fact_document, 0.12),
    (word_document, 0.04),
    (pair_document, 0.03),
    (counting_document, 0.02),
    (talk_document, 0.04),
)
