"""Multiple-choice questions of the made-up world, as ScienceQA records: from pictures, from hints, by heart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_prep.world.captions import captions
from data_prep.world.lexicon import (
    ANIMALS,
    FOODS,
    GREETINGS,
    MOVE_OF,
    MOVES,
    NAMES,
    OPPOSITE_OF,
    THINGS,
    WORDS,
    WORKPLACES,
    article,
)
from data_prep.world.scenes import VALUES, Scene, random_scene

NATURAL, SOCIAL, LANGUAGE = "natural science", "social science", "language science"
Item = TypeVar("Item")


@dataclass(frozen=True)
class PictureFamily:
    """Questions whose answer is one attribute of the pictured object."""

    subject: str
    attribute: str
    question: str
    topic: str
    category: str
    skill: str
    grades: tuple[int, int]
    lecture: str


@dataclass(frozen=True)
class Problem:
    """One ScienceQA record, and the scene to be drawn for it (None: no picture)."""

    record: dict[str, Any]
    scene: Scene | None


_COLOR = "A color is what the eye sees first. Things of the same shape can have many colors."
_MAP = "A map shows places from above. Top, bottom, left and right are directions on a map."
_WORD = "Words describe things. Some words tell the color, the size or the shape of a thing."

PICTURE_FAMILIES = (
    PictureFamily(NATURAL, "color", "What color is the shape?", "physics", "Materials",
                  "Identify the color of an object", (1, 6), _COLOR),
    PictureFamily(NATURAL, "pattern", "Which pattern does the shape have?", "physics", "Materials",
                  "Identify the pattern of an object", (3, 9), ""),
    PictureFamily(NATURAL, "size", "What size is the shape?", "units-and-measurement", "Units and measurement",
                  "Compare the sizes of objects", (1, 7), "Size tells how much room a thing takes."),
    PictureFamily(NATURAL, "ground", "What color is behind the shape?", "physics", "Materials",
                  "Identify the color of a background", (5, 12), _COLOR),
    PictureFamily(SOCIAL, "ground", "Which color surrounds the shape on the map?", "geography", "Maps",
                  "Tell what surrounds a place", (2, 12), _MAP),
    PictureFamily(SOCIAL, "ground", "What color is the land on the map?", "geography", "Maps",
                  "Read the colors of a map", (4, 12), _MAP),
    PictureFamily(SOCIAL, "color", "What color is the mark on the map?", "geography", "Maps",
                  "Read the marks of a map", (2, 9), _MAP),
    PictureFamily(LANGUAGE, "color", "Which word names the color in the picture?", "vocabulary", "Adjectives",
                  "Name a pictured color", (1, 5), _WORD),
    PictureFamily(LANGUAGE, "size", "Which word describes the size in the picture?", "vocabulary", "Adjectives",
                  "Choose the adjective that fits a picture", (3, 10), _WORD),
    PictureFamily(LANGUAGE, "ground", "Which word names the color of the background?", "vocabulary", "Adjectives",
                  "Name a pictured color", (6, 12), _WORD),
)  # fmt: skip
PICTURE_HINTS = ("{} drew the picture.", "{} sees this picture at school.", "Look at the picture of {}.")


@dataclass
class Deck:
    """Deals every item equally often, in random order: what keeps answers and letters balanced."""

    rng: random.Random
    _decks: dict[object, list[Any]] = field(default_factory=dict)

    def deal(self, name: object, items: Sequence[Item]) -> Item:
        """The next item of the deck called `name`."""
        left = self._decks.setdefault(name, [])
        if not left:
            left.extend(items)
            self.rng.shuffle(left)
        return left.pop()


class QuestionWriter:
    """Writes problems of one split; the n-th problem depends only on the seed and on n."""

    def __init__(self, seed: str, split: str) -> None:
        self.rng = random.Random(f"questions {seed} {split}")
        self.deck = Deck(self.rng)
        self.split = split
        self.text_families: tuple[Callable[[], dict[str, Any]], ...] = (
            self._move_of_animal, self._animal_that_moves, self._told_color, self._is_more, self._can_it,
            self._workplace, self._worker, self._told_trade, self._told_thing,
            self._opposite, self._first_word, self._first_letter, self._told_greeting,
        )  # fmt: skip

    def picture_problem(self) -> Problem:
        """A question that only the picture answers: values, letters and numbers of choices are dealt evenly."""
        family = self.deck.deal("picture family", PICTURE_FAMILIES)
        values = VALUES[family.attribute]
        value = self.deck.deal((family.question, "value"), values)
        count = self.deck.deal((family.question, "count"), range(2, min(5, len(values)) + 1))
        others = self.rng.sample([v for v in values if v != value], count - 1)
        scene = random_scene(self.rng, **{family.attribute: value})
        hint = self.deck.deal((family.question, "hint"), ("", "", *PICTURE_HINTS[:1], "", *PICTURE_HINTS[1:], ""))
        record = self._record(
            family.question, value, others, deck=family.question, subject=family.subject,
            topic=family.topic, category=family.category, skill=family.skill, grades=family.grades,
            hint=hint.format(self.rng.choice(NAMES)), image="image.png", lecture=family.lecture,
            solution=_seen(family.attribute, value),
        )  # fmt: skip
        return Problem(record, scene)

    def text_problem(self) -> Problem:
        """A question without a picture: answered from the hint, or by heart."""
        return Problem(self.deck.deal("text family", self.text_families)(), None)

    def _record(
        self, question: str, value: str, others: Sequence[str], *, deck: object, subject: str, topic: str,
        category: str, skill: str, grades: tuple[int, int], hint: str = "", image: str | None = None,
        lecture: str = "", solution: str = "", task: str = "closed choice",
    ) -> dict[str, Any]:  # fmt: skip
        """A record in upstream's field order; the letter of the answer comes from a deck."""
        answer = self.deck.deal((deck, len(others), "letter"), range(len(others) + 1))
        choices = list(others)
        choices.insert(answer, value)
        grade = self.deck.deal(("grade", grades), range(grades[0], grades[1] + 1))
        return {
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": task,
            "grade": f"grade{grade}",
            "subject": subject,
            "topic": topic,
            "category": category,
            "skill": skill,
            "lecture": lecture if self.deck.deal("has lecture", (True, True, False)) else "",
            "solution": solution if self.deck.deal("has solution", (True, True, True, False)) else "",
            "split": self.split,
        }

    def _others(self, pool: Sequence[str], value: str, most: int = 5) -> list[str]:
        """Wrong choices from a pool, so that questions have two to five choices."""
        wrong = sorted(set(pool) - {value})
        return self.rng.sample(wrong, self.rng.randint(1, min(most - 1, len(wrong))))

    def _two_answers(self, question: str, truth: bool, words: tuple[str, str], **fields: Any) -> dict[str, Any]:
        """A question with the fixed choices yes, no (or true, false)."""
        record = self._record(question, words[0], words[1:], deck="two answers", **fields)
        return record | {"choices": list(words), "answer": 0 if truth else 1}

    def _move_of_animal(self) -> dict[str, Any]:
        animal = self.rng.choice(ANIMALS)
        value = MOVE_OF[animal]
        return self._record(
            f"What can {article(animal)} do?", value, self._others(list(MOVES), value), deck="move", subject=NATURAL,
            topic="biology", category="Animals", skill="Tell how animals move", grades=(1, 8),
            lecture="Some animals fly, some swim and some walk.",
            solution=f"{article(animal).capitalize()} can {value}.",
        )  # fmt: skip

    def _animal_that_moves(self) -> dict[str, Any]:
        value = self.rng.choice(ANIMALS)
        move = MOVE_OF[value]
        pool = [animal for animal in ANIMALS if MOVE_OF[animal] != move]
        return self._record(
            f"Which animal can {move}?", value, self._others(pool, value), deck="animal", subject=NATURAL,
            topic="biology", category="Animals", skill="Tell how animals move", grades=(1, 12),
            lecture="Some animals fly, some swim and some walk.", solution=f"{article(value).capitalize()} can {move}.",
        )  # fmt: skip

    def _told_color(self) -> dict[str, Any]:
        animals, colors = self.rng.sample(ANIMALS, 2), self.rng.sample(VALUES["color"], 2)
        told = [f"The {animal} is {color}." for animal, color in zip(animals, colors, strict=True)]
        told = told[: self.rng.randint(1, 2)]
        self.rng.shuffle(told)
        return self._record(
            f"What color is the {animals[0]}?", colors[0], self._others(VALUES["color"], colors[0]), deck="told color",
            subject=NATURAL, topic="biology", category="Animals", skill="Read about animals", grades=(3, 12),
            hint=" ".join(told), lecture=_COLOR, solution=f"The {animals[0]} is {colors[0]}.",
        )  # fmt: skip

    def _is_more(self) -> dict[str, Any]:
        small, large = sorted(self.rng.sample(range(21), 2))
        truth = self.deck.deal("more", (True, False))
        first, second = (large, small) if truth else (small, large)
        return self._two_answers(
            f"Is {first} more than {second}?", truth, ("yes", "no"), task="yes or no", subject=NATURAL,
            topic="units-and-measurement", category="Units and measurement", skill="Compare numbers", grades=(1, 9),
            solution=f"{large} is more than {small}.",
        )  # fmt: skip

    def _can_it(self) -> dict[str, Any]:
        animal = self.rng.choice(ANIMALS)
        truth = self.deck.deal("can", (True, False))
        wrong = [move for move in MOVES if move != MOVE_OF[animal]]
        move = MOVE_OF[animal] if truth else self.rng.choice(wrong)
        claim = f"{article(animal).capitalize()} can {move}."
        return self._two_answers(
            f"{claim} True or false?", truth, ("true", "false"), task="true-or false", subject=NATURAL,
            topic="biology", category="Animals", skill="Tell how animals move", grades=(4, 12),
            solution=f"{article(animal).capitalize()} can {MOVE_OF[animal]}.",
        )  # fmt: skip

    def _workplace(self) -> dict[str, Any]:
        person, place = self.rng.choice(list(WORKPLACES.items()))
        return self._record(
            f"Where does a {person} work?", place, self._others(list(WORKPLACES.values()), place), deck="workplace",
            subject=SOCIAL, topic="economics", category="Work", skill="Tell where people work", grades=(1, 9),
            lecture="People work at many places.", solution=f"A {person} works at a {place}.",
        )  # fmt: skip

    def _worker(self) -> dict[str, Any]:
        person, place = self.rng.choice(list(WORKPLACES.items()))
        return self._record(
            f"Who works at a {place}?", person, self._others(list(WORKPLACES), person), deck="worker",
            subject=SOCIAL, topic="economics", category="Work", skill="Tell where people work", grades=(4, 12),
            lecture="People work at many places.", solution=f"A {person} works at a {place}.",
        )  # fmt: skip

    def _told_trade(self) -> dict[str, Any]:
        return self._told("sells", "What does {} sell?", FOODS, SOCIAL, "economics", "Trade", "Read a list", (3, 10))

    def _told_thing(self) -> dict[str, Any]:
        return self._told("has", "What does {} have?", THINGS, SOCIAL, "civics", "People", "Read about people", (1, 7))

    def _told_greeting(self) -> dict[str, Any]:
        return self._told(
            "says", "What does {} say?", GREETINGS, LANGUAGE, "reading-comprehension", "Reading", "Read a talk", (2, 12)
        )

    def _told(
        self, verb: str, question: str, pool: Sequence[str], subject: str, topic: str, category: str, skill: str,
        grades: tuple[int, int],
    ) -> dict[str, Any]:  # fmt: skip
        """A fact about one of one or two people stands in the hint."""
        names, values = self.rng.sample(NAMES, 2), self.rng.sample(list(pool), 2)
        told = [f"{name} {verb} {value}." for name, value in zip(names, values, strict=True)]
        told = told[: self.rng.randint(1, 2)]
        self.rng.shuffle(told)
        return self._record(
            question.format(names[0]), values[0], self._others(pool, values[0]), deck=verb, subject=subject,
            topic=topic, category=category, skill=skill, grades=grades, hint=" ".join(told),
            solution=f"{names[0]} {verb} {values[0]}.",
        )  # fmt: skip

    def _opposite(self) -> dict[str, Any]:
        word = self.rng.choice(list(OPPOSITE_OF))
        value = OPPOSITE_OF[word]
        pool = [other for other in OPPOSITE_OF if other != word]
        return self._record(
            f"Which word is the opposite of {word}?", value, self._others(pool, value), deck="opposite",
            subject=LANGUAGE, topic="vocabulary", category="Opposites", skill="Choose the opposite", grades=(1, 8),
            lecture="Opposites are words that mean the contrary.", solution=f"The opposite of {word} is {value}.",
        )  # fmt: skip

    def _first_word(self) -> dict[str, Any]:
        words = self.rng.sample(WORDS, self.rng.randint(2, 3))
        value = min(words)
        return self._record(
            "Which word comes first in the alphabet?", value, [w for w in words if w != value], deck="first word",
            subject=LANGUAGE, topic="word-study", category="Order", skill="Put words in order", grades=(2, 12),
            lecture="Words are put in order by their first letters.", solution=f"{value} comes first.",
        )  # fmt: skip

    def _first_letter(self) -> dict[str, Any]:
        value = self.rng.choice(WORDS)
        pool = [word for word in WORDS if word[0] != value[0]]
        return self._record(
            f"Which word starts with {value[0]}?", value, self._others(pool, value), deck="first letter",
            subject=LANGUAGE, topic="word-study", category="Letters", skill="Find the first letter", grades=(1, 6),
            solution=f"{value} starts with {value[0]}.",
        )  # fmt: skip


def _seen(attribute: str, value: str) -> str:
    """The solution of a picture question."""
    return f"The {'background' if attribute == 'ground' else 'shape'} is {value}."


def picture_caption(scene: Scene) -> str:
    """The caption that upstream's captions.json would hold for a picture."""
    return captions(scene)[0].rstrip(".").lower()
