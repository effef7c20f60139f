"""Pictures that files of data name stay below the data's folder, in every layout, unless a setting allows it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmadapter.data.readers.pictures import is_outside
from mmadapter.errors import InputError
from tests.data.reading import read
from tests.hostile import layouts

LAYOUTS = {
    "coco_captions": ("coco, lavis", "annotations/coco_karpathy_train.json", (0, "image")),
    "llava": ("llava", "data.json", (1, "image")),
    "llava_pretrain": ("llava pretrain", "chat.json", (0, "image")),
    "v2_instructions": ("v2 instructions", "dialogs.json", (1, "image")),
    "visual_instructions": ("visual instructions", "items.json", (0, "image")),
    "own": ("llava", "data.json", (1, "image")),
}
PLACES = {"llava": "data.json", "v2_instructions": "data.yaml", "visual_instructions": "items.json", "own": "data.json"}
READING = {"visual_instructions": {"split": "test"}, "coco_captions": {}, "llava_pretrain": {}}


def written(tmp_path, reader, picture):
    """A folder of data, of whose pictures one is called `picture`, below a folder with somebody's private one."""
    name, file, (*path, last) = LAYOUTS[reader]
    next(one for one in layouts.data_layouts() if one.name == name).write(tmp_path / "data")
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    content = holder = json.loads((tmp_path / "data" / file).read_text())
    for key in path:
        holder = holder[key]
    holder[last] = picture
    (tmp_path / "data" / file).write_text(json.dumps(content))
    return tmp_path / "data" / PLACES.get(reader, "")


def reading(reader, place, **settings):
    asks = reader != "visual_instructions"
    return read(reader, place, training=asks, **READING.get(reader, {"split": "all"}), **settings)


@pytest.mark.parametrize("picture", ["../private.png", "../../{}/private.png", "x/../../private.png", "{}/private.png"])
@pytest.mark.parametrize("reader", LAYOUTS)
def test_a_picture_outside_is_refused_with_place_and_setting(tmp_path, reader, picture):
    name = picture.format(tmp_path if picture.startswith("{") else tmp_path.name)
    place = written(tmp_path, reader, name)
    with pytest.raises(InputError, match=r"outside of the data's folder.*pictures_anywhere=true") as refused:
        reading(reader, place)
    assert LAYOUTS[reader][1].rpartition("/")[2] in str(refused.value) and "private.png" in str(refused.value)


@pytest.mark.parametrize("reader", ["llava", "own", "llava_pretrain", "visual_instructions"])
def test_a_setting_allows_it(tmp_path, reader):
    place = written(tmp_path, reader, str(tmp_path / "private.png"))
    samples = reading(reader, place, pictures_anywhere=True)
    assert tmp_path / "private.png" in [one.image for one in samples]


def test_without_pictures_their_names_do_not_matter(tmp_path):
    assert all(one.image is None for one in reading("llava", written(tmp_path, "llava", "/etc/hostname"), images=False))


@pytest.mark.parametrize("reader", ["llava", "own", "coco_captions"])
def test_such_items_are_left_out_and_counted_where_it_is_asked_for(tmp_path, reader, caplog):
    whole = reading(reader, written(tmp_path, reader, "../private.png"), on_bad="skip")
    assert not any("private" in str(one.image) for one in whole)
    assert "pictures outside of the data's folder" in caplog.text and ": 1, the first: " in caplog.text


def test_own_data_look_above_their_file_only_within_the_folder_that_is_named(tmp_path):
    layouts.put(tmp_path / "data" / "train.json", [{"question": f"{n}", "answer": "a", "image": "b.png"} for n in "xy"])
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert {one.image for one in reading("own", tmp_path)} == {tmp_path / "b.png"}
    with pytest.raises(InputError, match="pictures are missing"):
        reading("own", tmp_path / "data" / "train.json")
    found = reading("own", tmp_path / "data" / "train.json", root=str(tmp_path))
    assert {one.image for one in found} == {tmp_path / "b.png"}


def test_a_link_in_the_folder_is_followed_and_a_name_is_judged_as_it_is_written(tmp_path):
    (tmp_path / "elsewhere" / "train").mkdir(parents=True)
    for place in ("elsewhere/a.png", "elsewhere/train/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    items = [{"question": "x", "answer": "y", "image": name} for name in ("train/b.png", "train/../a.png")]
    layouts.put(tmp_path / "data" / "a.json", items)
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere" / "train")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    images = [one.image for one in reading("own", tmp_path / "data" / "a.json")]
    assert images == [tmp_path / "data" / "train" / "b.png", tmp_path / "data" / "a.png"]


def test_an_id_of_scienceqa_leads_nowhere_else(tmp_path):
    layouts.write_scienceqa(tmp_path)
    problems = json.loads((tmp_path / "problems.json").read_text())
    problems["../../q1"] = problems.pop("q1")
    layouts.put(tmp_path / "problems.json", problems)
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(InputError, match="question ../../q1: the id '../../q1' leads out of images/SPLIT/ID/"):
        read("scienceqa", tmp_path, training=True, split="train")


def test_what_is_outside(tmp_path):
    inside, outside = (
        ("a.png", "b/../a.png", f"{tmp_path}/a.png", "...png", "a..b/c.png"),
        ("..", "../a", "/", "b/../../a"),
    )
    assert not any(is_outside(name, [tmp_path]) for name in inside)
    assert all(is_outside(name, [tmp_path]) for name in outside)
