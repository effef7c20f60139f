"""The caption readers and their prep script on real files, where MMADAPTER_REFERENCE_DATA names a folder of them."""

from __future__ import annotations

import json

import pytest
from pycocotools.coco import COCO

from data_prep.coco_caption import main
from data_prep.command import SOUND, UNSOUND
from mmadapter.errors import InputError
from mmadapter.vision.images import read_image
from tests.data.reading import read_caption_shards, read_caption_table, read_coco_captions, read_llava_pretrain
from tests.data.small_captions import write_shard

pytestmark = pytest.mark.reference_data


def test_karpathys_val_captions_are_what_pycocotools_reads(reference_data, capsys):
    file = reference_data / "coco_caption/annotations/captions_karpathy_val.json"
    samples = read_coco_captions(file, split="val", training=False, images=False)
    assert len(samples) == 5000 and sum(len(sample.meta["references"]) for sample in samples) == 25010
    theirs = COCO(str(file)).imgToAnns
    for sample in samples:
        given = [one["caption"] for one in theirs[sample.meta["image_id"]]]
        assert sample.meta["references"] == [" ".join(text.split()) for text in given]


def test_the_val_list_picks_its_pictures(reference_data, caplog):
    settings = {"training": False, "images": False}
    samples = read_coco_captions(reference_data / "coco_caption", split="val", **settings)
    assert len(samples) == 122 and "listed pictures that the caption files lack: 4,878" in caplog.text
    with pytest.raises(InputError, match="neither list"):
        read_coco_captions(reference_data / "coco_caption", split="train", **settings)


def test_real_captions_survive_a_table(reference_data, tmp_path):
    file = reference_data / "coco_caption/annotations/captions_karpathy_val.json"
    samples = read_coco_captions(file, split="val", training=True, images=False)
    rows = [f"{sample.meta['image_id']}.jpg\t{sample.answer}" for sample in samples]
    (tmp_path / "all.tsv").write_text("\n".join(["url\tcaption", *rows]) + "\n", encoding="utf-8")
    again = read_caption_table(tmp_path, training=True, images=False)
    assert [sample.answer for sample in again] == [sample.answer for sample in samples]


def test_llava_pretrain_and_the_same_pictures_in_a_shard(reference_data, tmp_path):
    samples = read_llava_pretrain(reference_data / "llava_pretrain", training=True)
    assert len(samples) == 66 and not any("<image>" in sample.prompt for sample in samples)
    pairs = [
        {f"{n:09d}.jpg": sample.image.read_bytes(), f"{n:09d}.txt": sample.answer.encode()}
        for n, sample in enumerate(samples)
    ]
    write_shard(tmp_path / "00000.tar", *pairs)
    packed = read_caption_shards(tmp_path, training=True)
    assert [sample.answer for sample in packed] == [sample.answer for sample in samples]
    for inside, outside in zip(packed, samples, strict=True):
        assert read_image(inside.image).tobytes() == read_image(outside.image).tobytes()


def test_coco_mini_is_prepared(reference_data, tmp_path, capsys):
    assert main(["--root", str(reference_data / "coco_mini"), "--out", str(tmp_path), "--check", "all"]) == SOUND
    assert "pictures decoded: 45" in capsys.readouterr().out
    samples = read_coco_captions(
        reference_data / "coco_mini", split="train", training=True, path=tmp_path / "train.jsonl"
    )
    theirs = read_coco_captions(reference_data / "coco_mini", split="train", training=True)
    assert [(one.id, one.image, one.segments) for one in samples] == [
        (one.id, one.image, one.segments) for one in theirs
    ]


def test_awkward_pictures_are_told_and_left_out(reference_data, tmp_path, capsys):
    files = sorted(file for file in (reference_data / "awkward_images").iterdir() if file.is_file())
    rows = "".join(f"{file.name}\ta picture\n" for file in files)
    (tmp_path / "list.tsv").write_text(f"url\tcaption\n{rows}")
    settings = [
        "--root",
        str(reference_data / "awkward_images"),
        "--path",
        str(tmp_path / "list.tsv"),
        "--check",
        "all",
    ]
    assert main([*settings, "--out", str(tmp_path / "out")]) == UNSOUND
    screen = capsys.readouterr().out
    assert "unreadable pictures: 2, the first: list.tsv, line " in screen and ": broken.png: this is no pic" in screen
    assert main([*settings, "--out", str(tmp_path / "out"), "--on-bad", "skip"]) == SOUND
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert told["splits"]["train"]["kept"] == len(files) - 2
