"""Settings of the caption readers: what does not exist or does not fit is refused by its key."""

from __future__ import annotations

import pytest

from mmadapter.config import validate
from mmadapter.config.checks_data import reader_problems, reading_problems
from mmadapter.config.data import CAPTION_READERS, READERS, ReadingConf
from mmadapter.errors import InputError
from tests.config.composing import run_conf


def problems(reader: str, **settings) -> list[str]:
    return list(reader_problems(ReadingConf(reader=reader, **settings), "data.sources.captions"))


def test_the_recipe_composes_and_its_parts_follow_each_other():
    conf = run_conf("data=coco_caption", "data.root=/coco", "data.sources.captions.path=/x.json")
    source, held_out = conf.data.sources["captions"], conf.data.validation["captions"]
    assert (source.reader, source.split, source.template) == ("coco_captions", "train", "plain")
    assert (held_out.split, held_out.root, held_out.path, held_out.template) == ("val", "/coco", "/x.json", "plain")


@pytest.mark.parametrize(
    ("reader", "settings", "told"),
    [
        (
            "coco_captions",
            {"instruction": "own"},
            ".instruction=own: coco_captions has no such setting, only lla",
        ),
        (
            "caption_table",
            {"split_lists": "x"},
            ".split_lists=x: caption_table has no such setting, only coco",
        ),
        ("caption_shards", {"captions_per_image": "one"}, "captions_per_image=one: caption_shards has no such setting"),
        ("scienceqa", {"on_bad": "skip"}, ".on_bad=skip: scienceqa has no such setting, only coco_captions"),
        ("alpaca", {"template": "plain"}, ".template=plain: alpaca has no such setting"),
        ("caption_shards", {"split": "val"}, "have one split. Set data.sources.captions.split=train"),
        ("llava_pretrain", {"template": "plain"}, "Set data.sources.captions.instruction=caption, or"),
        ("coco_caption", {}, "Did you mean coco_captions?"),
    ],
)
def test_settings_that_do_not_fit(reader, settings, told):
    (problem,) = problems(reader, **settings)
    assert problem.startswith("data.sources.captions.") and told in problem


def test_settings_that_fit():
    assert not problems("llava_pretrain", template="plain", instruction="caption", on_bad="skip")
    assert not problems("coco_captions", template="plain", captions_per_image="one", split_lists="x", on_bad="error")
    assert all(not problems(reader, split="train") for reader in READERS)


@pytest.mark.parametrize("reader", CAPTION_READERS)
def test_what_is_to_be_read_must_be_named_and_there(tmp_path, reader):
    def found(root=None, **settings) -> list[str]:
        return list(reading_problems(ReadingConf(reader=reader, **settings), "task", root, False))

    assert found() == ["task has nothing to read: set data.root=FOLDER"]
    assert not found(str(tmp_path)) and not found(path=str(tmp_path))
    assert found(path="/no/file.json") == [
        "task.path=/no/file.json: no such file or folder (/ is there, what follows is not)."
    ]
    (told,) = found(str(tmp_path), split_lists="/no/lists")
    assert told.startswith("task.split_lists=/no/lists: no such file or folder")
    (tmp_path / "lists").mkdir()
    assert not found(str(tmp_path), split_lists="lists")


def test_captions_trained_on_are_not_validated_on(tmp_path):
    settings = ["data=coco_caption", f"data.root={tmp_path}", "data.validation.captions.split=train"]
    with pytest.raises(InputError, match="data.validation.captions and data.sources.captions both read split 'train'"):
        validate(run_conf(*settings))
