"""COCO's captions in LAVIS's layout, in the official one with split lists, and as our own prep script writes them."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from mmadapter.data.readers import coco as coco_reader
from mmadapter.errors import InputError
from tests.data.reading import read, read_coco_captions
from tests.data.small_captions import (
    DIRTY,
    coco_name,
    save_picture,
    write_json,
    write_lavis,
    write_official_with_lists,
)
from tests.data.small_files import write_karpathy


def ids(samples) -> list[str]:
    return [sample.id for sample in samples]


@pytest.mark.parametrize(
    ("write", "name", "spoil", "told"),
    [
        (
            write_karpathy,
            "dataset_coco.json",
            lambda content: content["images"][2].update(filepaths="val2014"),
            "`filepaths` (1 items, the first: image 3; did you mean `filepath`?)",
        ),
        (
            write_karpathy,
            "dataset_coco.json",
            lambda content: content["images"][2]["sentences"][0].update(raws="A dog.", tokens=["a"]),
            "`raws` (1 items, the first: image 3, `sentences`; did you mean `raw`?)",
        ),
        (
            write_official_with_lists,
            "annotations/captions_val2014.json",
            lambda content: [one.update(captions="a dog", mood="calm") for one in content["annotations"]],
            "`captions` (8 items, the first: captions_val2014.json, annotations[0]; did you mean `caption`?), `mood`",
        ),
        (
            write_official_with_lists,
            "annotations/captions_val2014.json",
            lambda content: content.update(licences=[5], info={"year": 2014}),
            "`licences` (1 items, the first: captions_val2014.json; did you mean `licenses`?)",
        ),
        (
            write_lavis,
            "annotations/coco_karpathy_val.json",
            lambda content: content[0].update(captoin="a dog"),
            "`captoin` (1 items, the first: coco_karpathy_val.json, [0]; did you mean `caption`?)",
        ),
    ],
)
def test_a_field_that_nobody_reads_is_named_with_its_first_place(tmp_path, caplog, write, name, spoil, told):
    write(tmp_path)
    file = tmp_path / name
    content = json.loads(file.read_text())
    spoil(content)
    write_json(file, content)
    read_coco_captions(tmp_path, split="val", training=False)
    assert f"these fields are not used: {told}" in caplog.text


class TestLavis:
    def test_captions_of_a_picture_come_together(self, tmp_path):
        samples = read_coco_captions(write_lavis(tmp_path), split="train", training=True)
        assert [(sample.id, sample.answer) for sample in samples] == [
            ("1-1", "a dog"),
            ("1-3", "the dog"),
            ("2-2", "a cat"),
        ]
        assert samples[0].image == tmp_path / "val2014" / coco_name(1) and samples[0].image.is_file()

    @pytest.mark.parametrize(("split", "number"), [("val", 3), ("test", 4)])
    def test_lists_are_references_and_the_id_is_in_the_name(self, tmp_path, split, number):
        (sample,) = read_coco_captions(write_lavis(tmp_path), split=split, training=False)
        assert sample.meta == {"references": ["a hat", "the hat"], "image_id": number}

    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            ({"image": f"val2014/{coco_name(1)}", "caption": "x", "image_id": "coco_7"}, "`image_id` is 'coco_7', but"),
            ({"image": "val2014/a.jpg", "caption": 5}, "`caption` is int '5'"),
            ({"image": "val2014/a.jpg", "caption": ["x", None]}, "a list that does not hold texts only"),
            ({"caption": "x"}, "the field `image` is missing"),
            ({"image": f"train2014/{coco_name(1)}", "caption": "x"}, "image id 1 belongs to val2014"),
            ("text", "expected an object, got str"),
        ],
    )
    def test_bad_entries_stop_or_are_left_out_with_a_count(self, tmp_path, caplog, entry, told):
        file = write_lavis(tmp_path) / "annotations/coco_karpathy_train.json"
        write_json(file, [*json.loads(file.read_text()), entry])
        with pytest.raises(InputError, match=r"coco_karpathy_train\.json, \[3\]: .*on_bad=skip") as caught:
            read_coco_captions(tmp_path, split="train", training=True)
        assert told in str(caught.value)
        assert len(read_coco_captions(tmp_path, split="train", training=True, on_bad="skip")) == 3
        assert "they are left out" in caplog.text and told in caplog.text


class TestOfficialWithLists:
    def test_train_is_what_is_in_neither_list(self, tmp_path):
        write_official_with_lists(tmp_path)
        found = {
            split: ids(read_coco_captions(tmp_path, split=split, training=False)) for split in ("train", "val", "test")
        }
        assert found == {"train": ["1", "2", "5"], "val": ["3"], "test": ["4"]}
        samples = read_coco_captions(tmp_path, split="train", training=True)
        assert ids(samples)[:3] == ["1-11", "1-12", "2-21"] and all(sample.image.is_file() for sample in samples)

    def test_the_lists_may_lie_elsewhere_and_the_pictures_be_of_2017(self, tmp_path):
        root = write_official_with_lists(tmp_path / "coco")
        (tmp_path / "lists").mkdir()
        for split in ("val", "test"):
            (root / f"karpathy_{split}_images.txt").rename(tmp_path / f"lists/karpathy_{split}_images.txt")
        for year, split in (("train2014", "train2017"), ("val2014", "val2017")):
            for picture in (root / year).iterdir():
                save_picture(root / split / picture.name.rpartition("_")[2])
                picture.unlink()
        assert ids(read_coco_captions(root, split="val", training=False)) == ["2", "3", "4", "5"]
        (sample,) = read_coco_captions(root, split="val", training=False, split_lists=tmp_path / "lists")
        assert sample.id == "3" and sample.image == root / "val2017/000000000003.jpg"

    def test_pictures_of_the_list_that_are_not_there_are_told(self, tmp_path, caplog):
        write_official_with_lists(tmp_path)
        with (tmp_path / "karpathy_val_images.txt").open("a") as file:
            file.write(f"val2014/{coco_name(77)} 77\r\n")
        assert ids(read_coco_captions(tmp_path, split="val", training=False)) == ["3"]
        assert "listed pictures that the caption files lack: 1, the first: 77 (val)" in caplog.text

    def test_train_is_refused_with_one_list_only(self, tmp_path):
        (write_official_with_lists(tmp_path) / "karpathy_test_images.txt").unlink()
        assert ids(read_coco_captions(tmp_path, split="val", training=False)) == ["3"]
        with pytest.raises(InputError, match="neither list.*only karpathy_val_images.txt"):
            read_coco_captions(tmp_path, split="train", training=True)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("val2014/x.jpg\n", "line 1: 'val2014/x.jpg'; expected"),
            (f"val2014/{coco_name(3)} 4\n", "line 1: .*expected"),
            (f"val2014/{coco_name(3)} 3\n" * 2, "line 2: image id 3 stands there twice"),
            (f"val2014/{coco_name(4)} 4\n", "picture 4 stands in the val list and in the test list"),
            ("\n", "list of pictures is empty"),
        ],
    )
    def test_bad_lists(self, tmp_path, text, told):
        (write_official_with_lists(tmp_path) / "karpathy_val_images.txt").write_text(text)
        with pytest.raises(InputError, match=told):
            read_coco_captions(tmp_path, split="val", training=False)

    def test_two_years_are_ambiguous(self, tmp_path):
        write_official_with_lists(tmp_path)
        write_json(tmp_path / "annotations/captions_val2017.json", {"images": [], "annotations": []})
        with pytest.raises(InputError, match=r"found captions_val2014\.json, captions_val2017\.json"):
            read_coco_captions(tmp_path, split="val", training=False)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda c: c["annotations"].append(c["annotations"][0]), "ids that stand twice: 1, .*annotation id 21"),
            (lambda c: c["images"].append(c["images"][0]), "ids that stand twice: 1, .*image id 2"),
            (lambda c: c["annotations"][0].pop("caption"), r"annotations\[0\]: the field `caption` is missing"),
            (lambda c: c["images"][0].pop("file_name"), r"images\[0\]: the field `file_name` is missing"),
        ],
    )
    def test_bad_entries(self, tmp_path, change, told):
        file = write_official_with_lists(tmp_path) / "annotations/captions_val2014.json"
        content = json.loads(file.read_text())
        change(content)
        write_json(file, content)
        with pytest.raises(InputError, match=told):
            read_coco_captions(tmp_path, split="val", training=False)

    def test_pycocotools_reads_the_same_captions(self, tmp_path, capsys):
        file = write_official_with_lists(tmp_path) / "annotations/captions_val2014.json"
        theirs = COCO(str(file))
        for sample in read_coco_captions(tmp_path, split="val", training=False, path=file):
            annotations = theirs.imgToAnns[sample.meta["image_id"]]
            assert [one["caption"] for one in annotations] == sample.meta["references"]


class TestOwnLines:
    LINE = {"image_id": 3, "image": f"val2014/{coco_name(3)}", "captions": [{"id": 31, "caption": "a hat"}]}

    def test_a_file_beside_or_apart_from_the_pictures(self, tmp_path):
        save_picture(tmp_path / "coco/val2014" / coco_name(3))
        (tmp_path / "train.jsonl").write_text(json.dumps(self.LINE) + "\n")
        settings = {"split": "train", "source": "c", "training": True}
        (sample,) = read("coco_captions", tmp_path / "coco", path=tmp_path / "train.jsonl", **settings)
        assert (sample.id, sample.answer) == ("3-31", "a hat") and sample.image.is_file()
        (tmp_path / "train.jsonl").rename(tmp_path / "coco/train.jsonl")
        assert read("coco_captions", tmp_path / "coco", **settings)[0].id == "3-31"

    def test_a_question_of_its_own(self, tmp_path):
        (tmp_path / "train.jsonl").write_text(json.dumps(self.LINE | {"instruction": "What is it?"}) + "\n")
        settings = {"training": True, "images": False}
        (sample,) = read_coco_captions(tmp_path, split="train", **settings)
        assert "What is it?" in sample.prompt and "Generate caption" not in sample.prompt
        with pytest.raises(InputError, match="a question of its own, but template=plain"):
            read_coco_captions(tmp_path, split="train", template="plain", **settings)

    def test_what_it_says_of_the_picture(self, tmp_path):
        told = {"color": "red", "background": "light blue"}
        (tmp_path / "test.jsonl").write_text(json.dumps(self.LINE | {"attributes": told}) + "\n")
        (sample,) = read_coco_captions(tmp_path, split="test", training=False, images=False)
        assert sample.meta["attributes"] == told
        for wrong, said in (({"color": 3}, "int '3' for 'color'"), ({"color": " "}, "for 'color'"), (["red"], "list")):
            (tmp_path / "test.jsonl").write_text(json.dumps(self.LINE | {"attributes": wrong}) + "\n")
            with pytest.raises(InputError, match=f"item 1: `attributes` .*{said}"):
                read_coco_captions(tmp_path, split="test", training=False, images=False)

    def test_bad_lines(self, tmp_path):
        lines = [self.LINE, self.LINE, self.LINE | {"captions": "a hat"}]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(InputError, match="item 2: image id 3 stands there twice.*item 3: `captions` is str"):
            read_coco_captions(tmp_path, split="train", training=True)


def test_karpathys_file_may_say_attributes_of_some_pictures(tmp_path):
    file = write_karpathy(tmp_path) / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][0]["attributes"] = {"color": "red"}
    write_json(file, content)
    samples = read_coco_captions(tmp_path, split="train", training=False)
    assert [sample.meta.get("attributes") for sample in samples] == [{"color": "red"}, None]


def test_dirty_captions_lose_only_their_whitespace(tmp_path):
    image = {"id": 1, "file_name": "a.jpg"}
    annotations = [{"id": number, "image_id": 1, "caption": text} for number, text in enumerate(DIRTY)]
    write_json(tmp_path / "captions_train.json", {"images": [image], "annotations": annotations})
    samples = read_coco_captions(tmp_path, split="train", training=True, images=False)
    assert [sample.answer for sample in samples] == list(DIRTY.values())


def test_a_cocoid_in_two_splits_is_refused(tmp_path):
    file = write_karpathy(tmp_path) / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][3]["cocoid"] = 1
    write_json(file, content)
    with pytest.raises(InputError, match=r"images\[3\]: image id 1 stands there twice \(again in split test\)"):
        read_coco_captions(tmp_path, split="train", training=True)


def test_counts_near_the_real_ones_are_told_and_small_worlds_are_not(tmp_path, caplog, monkeypatch):
    write_karpathy(tmp_path)
    read_coco_captions(tmp_path, split="train", training=True)
    assert caplog.text == ""
    monkeypatch.setitem(coco_reader.REAL_SIZES, "train", (3, 15))
    read_coco_captions(tmp_path, split="train", training=True)
    assert "split train has 2 pictures and 4 captions; Karpathy's has 3 and 15" in caplog.text
    caplog.clear()
    monkeypatch.setitem(coco_reader.REAL_SIZES, "train", (2, 4))
    read_coco_captions(tmp_path, split="train", training=True)
    assert caplog.text == ""


def test_a_folder_is_listed_and_a_picture_asked_for_once_however_many_captions_it_has(tmp_path, monkeypatch):
    write_karpathy(tmp_path)
    listed, asked = [], []
    scandir, is_file = os.scandir, Path.is_file

    def told_is_file(path: Path) -> bool:
        asked.append(path.name)
        return is_file(path)

    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    monkeypatch.setattr(Path, "is_file", told_is_file)
    assert len(read_coco_captions(tmp_path, split="train", training=True)) == 4
    assert listed.count(str(tmp_path / "val2014")) == 1
    assert [name for name in asked if name.endswith(".jpg")] == [
        coco_name(1),
        coco_name(2),
    ]


def test_samples_of_a_picture_share_what_is_the_same(tmp_path):
    samples = read_coco_captions(write_karpathy(tmp_path), split="train", training=True)
    assert samples[0].meta is samples[1].meta and samples[0].image is samples[1].image
    assert all(samples[0].segments[place] is samples[3].segments[place] for place in range(3))


def test_the_search_for_cycles_is_as_it_was_even_after_an_error(tmp_path):
    assert gc.isenabled()
    read_coco_captions(write_karpathy(tmp_path), split="train", training=True)
    assert gc.isenabled()
    (tmp_path / "dataset_coco.json").write_text("{")
    with pytest.raises(InputError):
        read_coco_captions(tmp_path, split="train", training=True)
    assert gc.isenabled()


def test_the_pictures_of_a_named_root_are_looked_for_there_whatever_it_is_called(tmp_path):
    root = tmp_path / "annotations"
    root.mkdir()
    write_karpathy(root)
    assert all(one.image.is_relative_to(root) for one in read_coco_captions(root, split="train", training=True))


def test_an_entry_of_a_picture_takes_the_place_of_a_bad_one_before_it(tmp_path):
    save_picture(tmp_path / "a.png")
    images = [{"id": 3}, {"id": 3, "file_name": "../a.png"}]
    content = {"images": images, "annotations": [{"id": 1, "image_id": 3, "caption": "a dog"}]}
    write_json(tmp_path / "captions_train2014.json", content)
    (sample,) = read_coco_captions(tmp_path, split="train", training=True, on_bad="skip")
    assert sample.answer == "a dog"


class TestSplitsThatAreNotThere:
    def test_karpathys_file_says_which_splits_it_has(self, tmp_path):
        file = write_karpathy(tmp_path) / "dataset_coco.json"
        content = json.loads(file.read_text())
        content["images"] = [one for one in content["images"] if one["split"] != "val"]
        file.write_text(json.dumps(content))
        with pytest.raises(
            InputError, match="there is no split 'val'; there is: restval, test, train. Set split to one"
        ):
            read_coco_captions(tmp_path, split="val", training=True)

    def test_a_list_of_pictures_that_is_missing_is_named(self, tmp_path):
        root = write_official_with_lists(tmp_path)
        (lost,) = root.rglob("karpathy_val_images.txt")
        lost.unlink()
        told = "split val is the pictures in karpathy_val_images.txt, which is not there; there is karpathy_test_images"
        with pytest.raises(InputError, match=told):
            read_coco_captions(root, split="val", training=True)
