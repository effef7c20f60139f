"""Visual instructions with a rule for the answer; pictures attached to questions that have none."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmadapter.data.readers.pictures import with_attached_images
from mmadapter.errors import InputError
from tests.data.reading import read

ITEM = {
    "instruction": "Tell me the color.", "image": "pictures/a.png", "attribute": "color", "answer": "red",
    "wrong": ["blue"], "unasked": ["large", "star"],
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / f"{name}.png")
    return written(tmp_path, [ITEM, {**ITEM, "image": "pictures/b.png"}])


def written(folder, items):
    path = folder / "visual.json"
    path.write_text(json.dumps(items))
    return path


def test_an_item_is_asked_in_alpacas_template_about_its_picture(file):
    first, second = read("visual_instructions", path=file, training=False, source="seen")
    assert first.prompt.endswith("### Instruction:\nTell me the color.\n\n### Response:") and first.answer is None
    assert first.image == file.parent / "pictures" / "a.png" and second.image.name == "b.png"
    assert first.meta["answer"] == "red" and first.meta["unasked"] == ["large", "star"]
    assert [sample.image for sample in read("visual_instructions", path=file, training=False, images=False)] == [
        None
    ] * 2


@pytest.mark.parametrize(
    "change,told",
    [
        ({"answer": ""}, "item 1: `answer`"),
        ({"wrong": "blue"}, "item 1: `wrong`"),
        ({"image": None}, "item 1: `image`"),
    ],
)
def test_a_damaged_item_is_told_with_its_place(tmp_path, file, change, told):
    written(tmp_path, [ITEM, {**ITEM, **change}])
    with pytest.raises(InputError, match=told):
        read("visual_instructions", path=file, training=False)


def test_nothing_is_trained_on_them(file):
    with pytest.raises(InputError, match="no answers to learn"):
        read("visual_instructions", path=file, training=True)


def test_a_missing_picture_is_an_error(tmp_path, file):
    written(tmp_path, [{**ITEM, "image": "pictures/none.png"}])
    with pytest.raises(InputError, match="1 of 1 pictures are missing"):
        read("visual_instructions", path=file, training=False)


def questions(tmp_path, count=40):
    items = [{"instruction": f"say {number}", "input": "", "output": "yes"} for number in range(count)]
    (tmp_path / "alpaca.json").write_text(json.dumps(items))
    return read("alpaca", path=tmp_path / "alpaca.json", split="all", training=False)


def test_every_question_gets_a_picture_by_its_id_alone(tmp_path, file):
    asked = questions(tmp_path)
    seen = with_attached_images(asked, tmp_path / "pictures")
    assert [sample.segments for sample in seen] == [sample.segments for sample in asked]
    assert {sample.image.name for sample in seen} == {"a.png", "b.png", "c.png"}
    assert with_attached_images(asked[7:9], tmp_path) == seen[7:9]  # neither the neighbours nor the root matter


def test_a_picture_that_is_there_stays(tmp_path, file):
    own = read("visual_instructions", path=file, training=False)
    assert with_attached_images(own, tmp_path / "pictures") == own


def test_a_folder_without_pictures_is_refused(tmp_path):
    asked = questions(tmp_path, 1)
    with pytest.raises(InputError, match="task.attach_images=.*no picture"):
        with_attached_images(asked, tmp_path)
