"""Alpaca's and COCO's readers."""

from __future__ import annotations

import json
import logging

import pytest

from mmadapter.data.readers.json_file import last_whole_entry
from mmadapter.errors import InputError
from tests.data.reading import read, read_alpaca, read_coco_captions
from tests.data.small_files import write_alpaca, write_karpathy, write_official_captions


class TestAlpaca:
    def test_empty_outputs_are_left_out_with_a_count(self, tmp_path, caplog):
        samples = read_alpaca(write_alpaca(tmp_path / "a.json"), training=True, split="all")
        assert len(samples) == 36 and "empty output: 4, the first: a.json, item 5; a.json, item 15" in caplog.text
        assert samples[1].where == "a.json, item 1" and samples[1].answer == "1"

    def test_an_empty_input_takes_the_template_without_one(self, tmp_path):
        samples = read_alpaca(write_alpaca(tmp_path / "a.json"), training=False, split="all")
        assert "### Input:" not in samples[0].prompt and samples[0].answer is None
        assert "### Input:\nin 1\n" in samples[1].prompt

    def test_system_and_history_are_learned(self, tmp_path):
        item = {"instruction": "c", "input": None, "output": "d", "system": "Be kind.", "history": [["a", "b"]]}
        (tmp_path / "a.json").write_text(json.dumps([item, {**item, "history": [["a"]]}]))
        with pytest.raises(InputError, match=r"item 1: history\[0\] is list .*; it must be .question, answer."):
            read_alpaca(tmp_path / "a.json", training=True, split="all")
        (sample,) = read_alpaca(tmp_path / "a.json", training=True, split="all", on_bad="skip")
        learned = [segment.text for segment in sample.segments if segment.kind == "answer"]
        assert learned == ["b", "d"] and "Be kind." in sample.prompt and sample.meta["instruction"] == "c"

    def test_validation_is_disjoint_and_does_not_depend_on_the_files_order(self, tmp_path):
        file = write_alpaca(tmp_path / "a.json")
        parts = {split: read_alpaca(file, training=True, split=split) for split in ("train", "val", "all")}
        train, val = ({sample.id for sample in parts[split]} for split in ("train", "val"))
        assert not train & val and train | val == {sample.id for sample in parts["all"]}
        assert len(val) == 3
        file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
        turned = {sample.prompt for sample in read_alpaca(file, training=True, split="val")}
        assert turned == {sample.prompt for sample in parts["val"]}
        assert len(read_alpaca(file, training=True, split="val", val_size=1)) == 1

    def test_equal_instructions_stand_on_one_side(self, tmp_path):
        items = [{"instruction": f"Say {number // 2}", "output": str(number)} for number in range(60)]
        (tmp_path / "a.json").write_text(json.dumps(items))
        sides = [
            {sample.prompt for sample in read_alpaca(tmp_path / "a.json", training=True, split=split)}
            for split in ("train", "val")
        ]
        assert not sides[0] & sides[1]

    def test_json_lines_and_a_folder(self, tmp_path):
        lines = [json.dumps({"instruction": f"Say {n}", "output": "\u2028x"}, ensure_ascii=False) for n in range(20)]
        (tmp_path / "own.jsonl").write_text("\r\n".join(lines) + "\n", encoding="utf-8")
        assert len(read("alpaca", tmp_path, path="own.jsonl", split="train", source="a", training=True)) == 18
        write_alpaca(tmp_path / "alpaca_data.json")
        assert len(read("alpaca", tmp_path, split="all", source="a", training=True, images=True)) == 36
        with pytest.raises(InputError, match="expected alpaca_data.json or one"):
            (tmp_path / "alpaca_data.json").unlink()
            read_alpaca(tmp_path, training=True)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ({"instruction": "x"}, "item 1: the field `output` is missing"),
            ({"instruction": 3, "output": "y"}, "item 1: `instruction` is int '3'"),
            ({"instruction": " ", "output": "y"}, "item 1: `instruction` is empty"),
            ("text", "item 1: expected an object"),
        ],
    )
    def test_bad_items_are_named(self, tmp_path, item, message):
        (tmp_path / "a.json").write_text(json.dumps([{"instruction": "a", "output": "b"}, item]))
        with pytest.raises(InputError, match=message):
            read_alpaca(tmp_path / "a.json", training=True)

    def test_bad_files(self, tmp_path):
        (tmp_path / "a.json").write_text('[{"instruction": "a", "output": "b"}, {"instr')
        with pytest.raises(InputError, match=r"ends too early at byte 39 of 45.*last whole entry is \[0\]"):
            read_alpaca(tmp_path / "a.json", training=True)
        (tmp_path / "b.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"x": \n')
        with pytest.raises(InputError, match=r"b\.jsonl, line 2"):
            read_alpaca(tmp_path / "b.jsonl", training=True)
        with pytest.raises(InputError, match=r"gone\.json: no such file or folder"):
            read_alpaca(tmp_path / "gone.json", training=True)
        with pytest.raises(InputError, match="split=test: the files of alpaca are split into train, val, all"):
            read_alpaca(write_alpaca(tmp_path / "c.json"), training=True, split="test")
        (tmp_path / "d.json").write_text('{"a": 1}')
        with pytest.raises(InputError, match="expected a list of items"):
            read_alpaca(tmp_path / "d.json", training=True)


class TestCocoCaptions:
    def test_karpathys_train_split_takes_in_restval(self, tmp_path):
        write_karpathy(tmp_path)
        samples = read_coco_captions(tmp_path, split="train", training=True, source="captions")
        assert [sample.id for sample in samples] == ["1-10", "1-11", "2-20", "2-21"]
        assert samples[0].answer == "A dog number 1."
        assert samples[1].answer == 'The "dog"'
        assert samples[0].image.is_file() and samples[0].where == "dataset_coco.json, image 1, caption 10"

    def test_for_evaluation_there_is_one_sample_an_image(self, tmp_path):
        write_karpathy(tmp_path)
        (sample,) = read_coco_captions(tmp_path, split="test", training=False, template="plain")
        assert sample.id == "4" and sample.prompt == "Generate caption of this image :" and sample.answer is None
        assert sample.meta == {"references": ["A dog number 4.", 'The "dog"'], "image_id": 4}

    def test_one_seeded_caption_an_image(self, tmp_path):
        write_karpathy(tmp_path)

        def chosen(seed):
            settings = {"training": True, "captions_per_image": "one", "seed": seed}
            return [sample.id for sample in read_coco_captions(tmp_path, split="train", **settings)]

        assert all(len(chosen(seed)) == 2 and chosen(seed) == chosen(seed) for seed in range(3))
        assert len({tuple(chosen(seed)) for seed in range(8)}) > 1

    def test_official_annotations(self, tmp_path, caplog):
        write_official_captions(tmp_path)
        samples = read_coco_captions(tmp_path, split="train", training=True)
        assert [sample.answer for sample in samples] == ["None", "a cat"]
        assert samples[0].image == tmp_path / "train2017/000000000007.jpg"
        assert "empty captions: 1, the first: captions_train2017.json, image 8, caption 3; they are left" in caplog.text
        assert "pictures without a caption: 1, the first: captions_train2017.json, image 8; they" in caplog.text
        file = tmp_path / "annotations/captions_train2017.json"
        assert read("coco_captions", file, split="train", source="c", training=True)[0].image.is_file()

    def test_2014_names_find_2017_files(self, tmp_path):
        write_karpathy(tmp_path)
        (tmp_path / "train2017").mkdir()
        (tmp_path / "val2014/COCO_val2014_000000000001.jpg").rename(tmp_path / "train2017/000000000001.jpg")
        samples = read_coco_captions(tmp_path, split="train", training=True)
        assert samples[0].image == tmp_path / "train2017/000000000001.jpg"

    def test_missing_images(self, tmp_path, caplog):
        write_karpathy(tmp_path)
        (tmp_path / "val2014/COCO_val2014_000000000002.jpg").unlink()
        with pytest.raises(InputError, match="1 of 2 pictures are missing"):
            read_coco_captions(tmp_path, split="train", training=True)
        with caplog.at_level(logging.WARNING):
            assert len(read_coco_captions(tmp_path, split="train", training=True, missing_image="skip")) == 2
        assert "left out" in caplog.text
        assert len(read_coco_captions(tmp_path, split="train", training=True, images=False)) == 4

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"split": "minival"}, "no split 'minival'; allowed: train, restval, val, test"),
            ({"template": "x"}, "template=x: allowed are auto, alpaca, vicuna, plain, chat"),
            ({"captions_per_image": "two"}, "captions_per_image=two: allowed are all, one, together"),
            ({"path": "gone.json"}, r"gone\.json: no such file or folder"),
        ],
    )
    def test_bad_settings(self, tmp_path, settings, message):
        write_karpathy(tmp_path)
        with pytest.raises(InputError, match=message):
            read_coco_captions(**{"root": tmp_path, "split": "train", "training": True} | settings)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content["images"][0].pop("cocoid"), r"images\[0\]: the field `cocoid` is missing"),
            (lambda content: content["images"][0]["sentences"][1].update(raw=None), "`raw` is null.*must be str"),
            (lambda content: content["images"].__setitem__(0, 5), r"images\[0\]: expected an object, got int"),
            (lambda content: content.pop("images"), "expected an object with a list `images`"),
        ],
    )
    def test_bad_entries(self, tmp_path, change, message):
        file = write_karpathy(tmp_path) / "dataset_coco.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_coco_captions(tmp_path, split="train", training=True)

    def test_an_annotation_of_an_unknown_image(self, tmp_path):
        file = write_official_captions(tmp_path) / "annotations/captions_train2017.json"
        content = json.loads(file.read_text())
        content["annotations"][1]["image_id"] = 70
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"annotations\[1\]: image_id 70 is not in `images`"):
            read_coco_captions(tmp_path, split="train", training=True)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match=r"expected dataset_coco\.json or one captions_train\*\.json"):
            read_coco_captions(tmp_path, split="train", training=True)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ('{"1": {"a": 1}, "2": {"a"', '"1"'),
        ('{"1": {"a', None),
        ("[1, 2, 3", "[2]"),
        ('{"info": {}, "images": [{"id": 1}, {"id": 2}, {"id', "images[1]"),
        ("  [", None),
        ("text", None),
    ],
)
def test_the_last_whole_entry_of_a_cut_file(text, last):
    assert last_whole_entry(text) == last
