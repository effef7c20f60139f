"""What experiment=interference reads: instructions of language only, open questions that nothing trains on."""

from __future__ import annotations

import json
import random

import pytest

from data_prep.shapes import FOLLOWING, OPEN_PICTURES, make_world
from data_prep.world.captions import captions
from data_prep.world.instructions import WORDINGS, following_records, open_questions
from data_prep.world.scenes import VALUES, random_scene
from data_prep.world.text import world_texts
from mmadapter.tasks.visual_instruct import outcome
from tests.training.tiny_run import SIZES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "world"
    make_world(out, sizes=SIZES, interference=True)
    return out


def test_the_world_holds_the_shapes_and_both_kinds_of_instructions(world):
    assert {path.name for path in world.iterdir()} >= {"coco", "scienceqa", "manifest.json", "pictures"}
    assert len(json.loads((world / "instructions.json").read_text())) == FOLLOWING
    items = json.loads((world / "visual_instructions.json").read_text())
    assert len(items) == OPEN_PICTURES * len(VALUES) and all((world / item["image"]).is_file() for item in items)
    assert [path.name for path in world.parent.iterdir()] == ["world"]


def test_instructions_are_a_pure_function_of_the_seed_and_differ_from_each_other():
    records = following_records(0, 300)
    assert records == following_records(0, 300) != following_records(1, 300)
    assert len({(record["instruction"], record["input"]) for record in records}) == 300


def test_the_told_scene_holds_the_answer():
    """A host that only reads can answer: the asked value stands in the input, or in the choice of two."""
    for record in following_records(0, 300):
        if record["input"]:
            value = record["output"].rstrip(".").split()[-1]
            assert value in record["input"].replace(".", " ").replace(",", " ").lower().split(), record


def test_no_training_text_holds_the_wording_of_an_open_question():
    texts = world_texts(0)
    read = [next(texts) for _ in range(3000)]
    read += [record["instruction"] for record in following_records(0, 1000)]
    rng = random.Random(0)
    read += [caption for _ in range(100) for caption in captions(random_scene(rng))]
    told = "\n".join(read)
    assert not [wording for wordings in WORDINGS.values() for wording in wordings if wording in told]


def test_the_rule_accepts_the_right_word_alone_and_calls_a_caption_a_description():
    rng = random.Random(0)
    for _ in range(50):
        scene = random_scene(rng)
        for item in open_questions(scene, "a.png", rng):
            assert item["answer"] == scene.value(item["attribute"])
            assert outcome(f"It is {item['answer']}.", item) == "followed"
            assert outcome(captions(scene)[0], item) == "described"
            assert all(outcome(f"It is {word}.", item) == "wrong" for word in item["wrong"])
