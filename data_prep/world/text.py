"""The world's plain text, which the tiny LLaMA learns from: told scenes, facts, lists, counting, small talk, forms.

No document uses ScienceQA's or Alpaca's prompt template: the tasks stay unseen until an adapter learns them. The labels
of the forms are many and none of them is a word of a template: a host that has read them knows what a form is, and
still has to be taught the task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from data_prep.world.captions import WHERE, captions, statements, tags
from data_prep.world.lexicon import (
    ANIMALS,
    ASKED,
    FOODS,
    GREETINGS,
    LETTERS,
    MOVE_OF,
    MOVES,
    NAMES,
    NUMBER_WORDS,
    OPPOSITE_OF,
    THINGS,
    WORDS,
    WORKPLACES,
    article,
    lettered,
)
from data_prep.world.scenes import VALUES, Scene, random_pair, random_scene

PICKED = ("Pick: {}.", "I pick {}.", "Its letter is {}.", "It is {}.", "Letter {}.", "{} fits.", "{} it is.")
LISTED = ("Here is a list: {}.", "Which one? {}.", "Choose: {}.", "{}.", "The list: {}.", "One of {}.")
ASKING = ("Asked", "Q", "Riddle", "Puzzle", "Exercise", "Quiz")
GIVEN = ("Given", "Told", "Text", "Note", "Known")
NOTHING = ("nothing", "N/A", "nothing at all", "no text")
LISTING = ("Choices", "List", "Words", "Cards", "Pick one")
REPLYING = ("Reply", "So", "Solved", "Result", "Found")
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
        (document,) = rng.choices(list(_KINDS), list(_KINDS.values()))
        yield document(rng)


def scene_document(rng: random.Random) -> str:
    """A scene is told in some form; long talk about it follows, with other talk in between."""
    scene = random_scene(rng)
    names = list(VALUES)
    rng.shuffle(names)
    names = names[: rng.randint(2, len(names))]
    parts = [_told(scene, rng, names)]
    for name in rng.sample(names, rng.randint(1, min(4, len(names)))):
        if rng.random() < 0.2:
            parts.append(rng.choice(SMALL_TALK))
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
    return _join([rng.choice(_FACTS)(rng) for _ in range(rng.randint(2, 6))], rng)


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
        told.append(rng.choice(SMALL_TALK))
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


def talk_document(rng: random.Random) -> str:
    """Small talk."""
    return _join([rng.choice(SMALL_TALK) for _ in range(rng.randint(2, 5))], rng)


def _join(parts: list[str], rng: random.Random) -> str:
    """Sentences on one line or on lines of their own, first letters large."""
    separator = "\n" if rng.random() < 0.35 else " "
    return separator.join(part[0].upper() + part[1:] for part in parts)


# Quizzes: lettered lists, what is picked from them, and forms with labelled lines.


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


# Facts.


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


_FACTS = (_opposite, _moving, _workplace, _comparison, _first_word, _first_letter)
_KINDS: dict[Callable[[random.Random], str], float] = {
    scene_document: 0.33,
    unseen_document: 0.15,
    list_document: 0.15,
    people_document: 0.12,
    fact_document: 0.12,
    word_document: 0.04,
    pair_document: 0.03,
    counting_document: 0.02,
    talk_document: 0.04,
}
