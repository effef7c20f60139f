"""Settings of the readers: what does not exist or does not fit is refused by its key."""

from __future__ import annotations

import pytest

from mmadapter.config import validate
from mmadapter.data.readers import MissingData, read
from mmadapter.data.settings import READERS, CaptionSettings
from mmadapter.errors import InputError
from mmadapter.settings import problems_of, typed
from tests.config.composing import run_conf

KEY = "data.sources.captions"
CAPTION_READERS = [name for name in READERS.names() if issubclass(READERS.settings(name), CaptionSettings)]


def problems(reader: str, **settings) -> list[str]:
    return list(problems_of(typed(READERS.settings(reader), {"reader": reader, **settings}, KEY), KEY))


def test_the_recipe_composes_and_its_parts_follow_each_other():
    conf = run_conf("data=coco_caption", "data.root=/coco", "data.sources.captions.path=/x.json")
    source, held_out = conf.data.sources["captions"], conf.data.validation["captions"]
    assert (source.reader, source.split, source.template) == ("coco_captions", "train", "plain")
    assert (held_out.split, held_out.root, held_out.path, held_out.template) == ("val", "/coco", "/x.json", "plain")


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        ("coco_captions", "instruction"),
        ("caption_table", "split_lists"),
        ("caption_shards", "captions_per_image"),
        ("scienceqa", "on_bad"),
        ("alpaca", "prompt"),
        ("sharegpt", "prompt_format"),
    ],
)
def test_settings_that_a_reader_does_not_have_are_refused_by_name(reader, name):
    given = ("data=alpaca", f"data.sources.alpaca.reader={reader}", f"data.sources.alpaca.{name}=x")
    with pytest.raises(InputError, match=f"There is no setting 'data.sources.alpaca.{name}'.*") as refused:
        run_conf(*given)
    assert "data.sources.alpaca has: reader, root, path" in str(refused.value)


def test_null_is_the_default_so_that_another_reader_takes_a_files_settings_over():
    conf = run_conf("data=coco_caption", f"{KEY}.reader=caption_shards", f"{KEY}.captions_per_image=null")
    shards = conf.data.sources["captions"]
    assert type(shards) is READERS.settings("caption_shards") and (shards.template, shards.on_bad) == ("plain", "error")


@pytest.mark.parametrize(
    ("reader", "settings", "told"),
    [
        ("caption_shards", {"split": "val"}, "have one split. Set data.sources.captions.split=train"),
        ("alpaca", {"split": "test"}, "are split into train, val, all"),
        ("llava_pretrain", {"template": "plain"}, "Set data.sources.captions.instruction=caption, or"),
        ("coco_captions", {"template": "x"}, ".template=x: allowed are auto, alpaca, vicuna, plain, chat"),
        ("coco_captions", {"captions_per_image": "two"}, ".captions_per_image=two: allowed are all, one, together"),
        ("scienceqa", {"missing_image": "black"}, ".missing_image=black: allowed are error, skip, no_image"),
        ("scienceqa", {"prompt_format": "QXM"}, ".prompt_format is 'QXM'; allowed is PROMPT-ANSWER"),
    ],
)
def test_settings_that_do_not_fit(reader, settings, told):
    (problem,) = problems(reader, **settings)
    assert problem.startswith(f"{KEY}.") and told in problem


def test_an_unknown_reader_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=rf"{KEY}.reader='coco_caption'\. Did you mean coco_captions\? Registered"):
        run_conf("data=coco_caption", f"{KEY}.reader=coco_caption")


def test_settings_that_fit():
    assert not problems("llava_pretrain", template="plain", instruction="caption", on_bad="skip")
    assert not problems("coco_captions", template="plain", captions_per_image="one", split_lists="x", on_bad="error")
    assert all(not problems(reader) for reader in READERS.names())


@pytest.mark.parametrize("reader", READERS.names())
def test_what_is_to_be_read_must_be_named_and_there(reader):
    def told(root=None, **settings) -> str:
        with pytest.raises(MissingData) as refused:
            read(READERS.settings(reader)(**settings), root, source="s", training=False, key="tasks.t")
        return str(refused.value)

    is_file = READERS.settings(reader).reads_file
    assert told().startswith("tasks.t has nothing to read. Set " + ("tasks.t.path=FILE" if is_file else "data.root=F"))
    nothing = "no such file or folder (/ is there, what follows is not)."
    assert told(path="/no/file.json") == f"tasks.t.path=/no/file.json: {nothing}"
    assert told(root="/no/folder") == (told() if is_file else f"data.root=/no/folder: {nothing}")


@pytest.mark.parametrize("reader", CAPTION_READERS)
def test_home_is_where_a_tilde_says(tmp_path, monkeypatch, reader):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    for settings, root in (({}, "~/there"), ({"root": "~/there"}, None)):
        with pytest.raises(InputError, match=f"{tmp_path}/there") as refused:
            read(READERS.settings(reader)(**settings), root, source="s", training=True)
        assert not isinstance(refused.value, MissingData)


def test_captions_trained_on_are_not_validated_on(tmp_path):
    settings = ["data=coco_caption", f"data.root={tmp_path}", "data.validation.captions.split=train"]
    with pytest.raises(InputError, match="data.validation.captions and data.sources.captions both read split 'train'"):
        validate(run_conf(*settings))
