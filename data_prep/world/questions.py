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
class Topic:
    """What upstream says of a question beside its text; `grades` are the lowest and the highest."""

    subject: str
    topic: str
    category: str
    skill: str
    grades: tuple[int, int]
    lecture: str = ""


@dataclass(frozen=True)
class Problem:
    """One ScienceQA record, and the scene to be drawn for it (None: no picture)."""

    record: dict[str, Any]
    scene: Scene | None


_COLOR = "A color is what the eye sees first. Things of the same shape can have many colors."
_MAP = "A map shows places from above. Top, bottom, left and right are directions on a map."
_WORD = "Words describe things. Some words tell the color, the size or the shape of a thing."
_MOVES = "Some animals fly, some swim and some walk."
_SIZE = "Size tells how much room a thing takes."
_WORK = "People work at many places."

# Questions whose answer is one attribute of the pictured object: the attribute, the question, its topic.
PICTURE_FAMILIES = (
    ("color", "What color is the shape?",
     Topic(NATURAL, "physics", "Materials", "Identify the color of an object", (1, 6), _COLOR)),
    ("pattern", "Which pattern does the shape have?",
     Topic(NATURAL, "physics", "Materials", "Identify the pattern of an object", (3, 9))),
    ("size", "What size is the shape?",
     Topic(NATURAL, "units-and-measurement", "Units and measurement", "Compare the sizes of objects", (1, 7), _SIZE)),
    ("ground", "What color is behind the shape?",
     Topic(NATURAL, "physics", "Materials", "Identify the color of a background", (5, 12), _COLOR)),
    ("ground", "Which color surrounds the shape on the map?",
     Topic(SOCIAL, "geography", "Maps", "Tell what surrounds a place", (2, 12), _MAP)),
    ("ground", "What color is the land on the map?",
     Topic(SOCIAL, "geography", "Maps", "Read the colors of a map", (4, 12), _MAP)),
    ("color", "What color is the mark on the map?",
     Topic(SOCIAL, "geography", "Maps", "Read the marks of a map", (2, 9), _MAP)),
    ("color", "Which word names the color in the picture?",
     Topic(LANGUAGE, "vocabulary", "Adjectives", "Name a pictured color", (1, 5), _WORD)),
    ("size", "Which word describes the size in the picture?",
     Topic(LANGUAGE, "vocabulary", "Adjectives", "Choose the adjective that fits a picture", (3, 10), _WORD)),
    ("ground", "Which word names the color of the background?",
     Topic(LANGUAGE, "vocabulary", "Adjectives", "Name a pictured color", (6, 12), _WORD)),
)  # fmt: skip
PICTURE_HINTS = (
    "",
    "",
    "{} drew the picture.",
    "",
    "{} sees this picture at school.",
    "Look at the picture of {}.",
    "",
)


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
        attribute, question, topic = self.deck.deal("picture family", PICTURE_FAMILIES)
        values = VALUES[attribute]
        value = self.deck.deal((question, "value"), values)
        count = self.deck.deal((question, "count"), range(2, min(5, len(values)) + 1))
        others = self.rng.sample([v for v in values if v != value], count - 1)
        scene = random_scene(self.rng, **{attribute: value})
        hint = self.deck.deal((question, "hint"), PICTURE_HINTS).format(self.rng.choice(NAMES))
        solution = f"The {'background' if attribute == 'ground' else 'shape'} is {value}."
        record = self._record(question, question, value, others, topic, solution, hint=hint, image="image.png")
        return Problem(record, scene)

    def text_problem(self) -> Problem:
        """A question without a picture: answered from the hint, or by heart."""
        return Problem(self.deck.deal("text family", self.text_families)(), None)

    def _record(
        self, deck: str, question: str, value: str, others: Sequence[str], topic: Topic, solution: str, *,
        hint: str = "", image: str | None = None, task: str = "closed choice",
    ) -> dict[str, Any]:  # fmt: skip
        """A record in upstream's field order; the letter of the answer comes from the deck of this name."""
        answer = self.deck.deal((deck, len(others), "letter"), range(len(others) + 1))
        choices = list(others)
        choices.insert(answer, value)
        grade = self.deck.deal(("grade", topic.grades), range(topic.grades[0], topic.grades[1] + 1))
        return {
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": task,
            "grade": f"grade{grade}",
            "subject": topic.subject,
            "topic": topic.topic,
            "category": topic.category,
            "skill": topic.skill,
            "lecture": topic.lecture if self.deck.deal("has lecture", (True, True, False)) else "",
            "solution": solution if self.deck.deal("has solution", (True, True, True, False)) else "",
            "split": self.split,
        }

    def _others(self, pool: Sequence[str], value: str) -> list[str]:
        """Wrong choices from a pool, so that questions have two to five choices."""
        wrong = sorted(set(pool) - {value})
        return self.rng.sample(wrong, self.rng.randint(1, min(4, len(wrong))))

    def _two_answers(
        self, question: str, truth: bool, words: tuple[str, str], task: str, topic: Topic, solution: str
    ) -> dict[str, Any]:
        """A question with the fixed choices yes, no (or true, false)."""
        record = self._record("two answers", question, words[0], words[1:], topic, solution, task=task)
        return record | {"choices": list(words), "answer": 0 if truth else 1}

    def _told(
        self, deck: str, sentence: str, question: str, subjects: Sequence[str], pool: Sequence[str], topic: Topic
    ) -> dict[str, Any]:
        """A fact about one of one or two subjects stands in the hint."""
        names, values = self.rng.sample(subjects, 2), self.rng.sample(pool, 2)
        told = [sentence.format(name, value) for name, value in zip(names, values, strict=True)]
        solution = told[0]
        told = told[: self.rng.randint(1, 2)]
        self.rng.shuffle(told)
        others = self._others(pool, values[0])
        return self._record(deck, question.format(names[0]), values[0], others, topic, solution, hint=" ".join(told))

    # Natural science.

    def _move_of_animal(self) -> dict[str, Any]:
        animal = self.rng.choice(ANIMALS)
        value = MOVE_OF[animal]
        topic = Topic(NATURAL, "biology", "Animals", "Tell how animals move", (1, 8), _MOVES)
        solution = f"{article(animal).capitalize()} can {value}."
        others = self._others(list(MOVES), value)
        return self._record("move", f"What can {article(animal)} do?", value, others, topic, solution)

    def _animal_that_moves(self) -> dict[str, Any]:
        value = self.rng.choice(ANIMALS)
        move = MOVE_OF[value]
        others = self._others([animal for animal in ANIMALS if MOVE_OF[animal] != move], value)
        topic = Topic(NATURAL, "biology", "Animals", "Tell how animals move", (1, 12), _MOVES)
        solution = f"{article(value).capitalize()} can {move}."
        return self._record("animal", f"Which animal can {move}?", value, others, topic, solution)

    def _told_color(self) -> dict[str, Any]:
        topic = Topic(NATURAL, "biology", "Animals", "Read about animals", (3, 12), _COLOR)
        return self._told("told color", "The {} is {}.", "What color is the {}?", ANIMALS, VALUES["color"], topic)

    def _is_more(self) -> dict[str, Any]:
        small, large = sorted(self.rng.sample(range(21), 2))
        truth = self.deck.deal("more", (True, False))
        first, second = (large, small) if truth else (small, large)
        topic = Topic(NATURAL, "units-and-measurement", "Units and measurement", "Compare numbers", (1, 9))
        question, solution = f"Is {first} more than {second}?", f"{large} is more than {small}."
        return self._two_answers(question, truth, ("yes", "no"), "yes or no", topic, solution)

    def _can_it(self) -> dict[str, Any]:
        animal = self.rng.choice(ANIMALS)
        truth = self.deck.deal("can", (True, False))
        wrong = [move for move in MOVES if move != MOVE_OF[animal]]
        move = MOVE_OF[animal] if truth else self.rng.choice(wrong)
        topic = Topic(NATURAL, "biology", "Animals", "Tell how animals move", (4, 12))
        subject = article(animal).capitalize()
        question, solution = f"{subject} can {move}. True or false?", f"{subject} can {MOVE_OF[animal]}."
        return self._two_answers(question, truth, ("true", "false"), "true-or false", topic, solution)

    # Social science.

    def _workplace(self) -> dict[str, Any]:
        person, place = self.rng.choice(list(WORKPLACES.items()))
        others = self._others(list(WORKPLACES.values()), place)
        topic = Topic(SOCIAL, "economics", "Work", "Tell where people work", (1, 9), _WORK)
        solution = f"A {person} works at a {place}."
        return self._record("workplace", f"Where does a {person} work?", place, others, topic, solution)

    def _worker(self) -> dict[str, Any]:
        person, place = self.rng.choice(list(WORKPLACES.items()))
        others = self._others(list(WORKPLACES), person)
        topic = Topic(SOCIAL, "economics", "Work", "Tell where people work", (4, 12), _WORK)
        solution = f"A {person} works at a {place}."
        return self._record("worker", f"Who works at a {place}?", person, others, topic, solution)

    def _told_trade(self) -> dict[str, Any]:
        topic = Topic(SOCIAL, "economics", "Trade", "Read a list", (3, 10))
        return self._told("sells", "{} sells {}.", "What does {} sell?", NAMES, FOODS, topic)

    def _told_thing(self) -> dict[str, Any]:
        topic = Topic(SOCIAL, "civics", "People", "Read about people", (1, 7))
        return self._told("has", "{} has {}.", "What does {} have?", NAMES, THINGS, topic)

    # Language science.

    def _told_greeting(self) -> dict[str, Any]:
        topic = Topic(LANGUAGE, "reading-comprehension", "Reading", "Read a talk", (2, 12))
        return self._told("says", "{} says {}.", "What does {} say?", NAMES, GREETINGS, topic)

    def _opposite(self) -> dict[str, Any]:
        word = self.rng.choice(list(OPPOSITE_OF))
        value = OPPOSITE_OF[word]
        others = self._others([other for other in OPPOSITE_OF if other != word], value)
        lecture = "Opposites are words that mean the contrary."
        topic = Topic(LANGUAGE, "vocabulary", "Opposites", "Choose the opposite", (1, 8), lecture)
        solution = f"The opposite of {word} is {value}."
        return self._record("opposite", f"Which word is the opposite of {word}?", value, others, topic, solution)

    def _first_word(self) -> dict[str, Any]:
        words = self.rng.sample(WORDS, self.rng.randint(2, 3))
        value = min(words)
        others = [word for word in words if word != value]
        lecture = "Words are put in order by their first letters."
        topic = Topic(LANGUAGE, "word-study", "Order", "Put words in order", (2, 12), lecture)
        question, solution = "Which word comes first in the alphabet?", f"{value} comes first."
        return self._record("first word", question, value, others, topic, solution)

    def _first_letter(self) -> dict[str, Any]:
        value = self.rng.choice(WORDS)
        others = self._others([word for word in WORDS if word[0] != value[0]], value)
        topic = Topic(LANGUAGE, "word-study", "Letters", "Find the first letter", (1, 6))
        question, solution = f"Which word starts with {value[0]}?", f"{value} starts with {value[0]}."
        return self._record("first letter", question, value, others, topic, solution)


def picture_caption(scene: Scene) -> str:
    """The caption that upstream's captions.json would hold for a picture."""
    return captions(scene)[0].rstrip(".").lower()
