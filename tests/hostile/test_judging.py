"""The corpus notices what it is made to notice; and a few mutations, of which `python -m tests.hostile` has more."""

from __future__ import annotations

import logging
import time

import pytest

from mmadapter.errors import InputError
from tests.hostile.judging import ACCEPTED, CLEAR, GOOD, HANG, LOST, RIGHT, TRACEBACK, Case, judged, table
from tests.hostile.layouts import mark
from tests.hostile.mutations import mutated

LOG = logging.getLogger("mmadapter.data.readers.fake")


def refuse(message):
    raise InputError(message)


def warn(text):
    LOG.warning("%s", text)
    return ""


FAKES = {
    "a message with its place": (lambda f: refuse("a.json, item 3: `image` is null"), {"says": "item 3"}, CLEAR),
    "a message of another thing": (lambda f: refuse("a.json, item 3: `image` is null"), {"says": "byte"}, TRACEBACK),
    "a message of nothing": (lambda f: refuse("bad"), {}, TRACEBACK),
    "a bug": (lambda f: {}["x"], {}, TRACEBACK),
    "taken": (lambda f: "", {}, ACCEPTED),
    "taken with a word": (lambda f: warn("one picture was left out"), {"says": "left out"}, CLEAR),
    "right": (lambda f: mark(1), {"expect": "accepted", "given": lambda f: mark(1)}, RIGHT),
    "refused though right": (lambda f: refuse("a.json, item 3: no"), {"expect": "accepted"}, TRACEBACK),
    "lost": (lambda f: mark(1), {"expect": "either", "given": lambda f: f"{mark(1)} {mark(2)}"}, LOST),
    "lost with a word": (lambda f: warn("1 left out"), {"expect": "either", "given": lambda f: mark(2)}, CLEAR),
    "waits for ever": (lambda f: time.sleep(60), {"expect": "either"}, HANG),
}


@pytest.mark.parametrize("name", FAKES)
def test_every_outcome_is_told_apart(tmp_path, name):
    act, settings, verdict = FAKES[name]
    found = judged(Case("fake", name, act, **settings), tmp_path / "case", seconds=0.3 if verdict == HANG else 10)
    assert found.verdict == verdict, found.message
    assert verdict in table([found])


def test_the_same_seed_makes_the_same_mutations(tmp_path):
    def made(seed, place):
        next(iter(mutated(1, seed))).act(tmp_path / place)

    for place, seed in (("a", 5), ("b", 5), ("c", 6)):
        try:
            made(seed, place)
        except InputError:
            continue
    contents = [
        {str(path.relative_to(tmp_path / place)): path.read_bytes() for path in (tmp_path / place).rglob("*.*")}
        for place in "abc"
    ]
    assert contents[0] == contents[1] != contents[2]


def test_mutations_of_data_end_as_they_should(tmp_path):
    outcomes = [judged(case, tmp_path / str(n), 60) for n, case in enumerate(mutated(46, seed=7)) if n % 37 < 23]
    assert [(one.case.name, one.verdict, one.message) for one in outcomes if one.verdict not in GOOD] == []
