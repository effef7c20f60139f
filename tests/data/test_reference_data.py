"""The readers on real files, where a folder of them is named by MMADAPTER_REFERENCE_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.command import UNSOUND
from data_prep.scienceqa import main
from mmadapter.data.mixture import StepShape, TurnsMixture
from mmadapter.data.tokens import SampleEncoder
from mmadapter.errors import InputError
from mmadapter.vision.images import read_image
from tests.data.reading import read, read_alpaca, read_coco_captions, read_scienceqa
from tests.data.tokenizers_at_hand import byte_level

FOLDER = os.environ.get("MMADAPTER_REFERENCE_DATA")
pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.skipif(not FOLDER, reason="MMADAPTER_REFERENCE_DATA names no folder of real samples: not run"),
]
ROOT = Path(FOLDER or ".")
BAD_IMAGES = {"broken.png": "no picture", "truncated_jpeg.jpg": "cut off or damaged"}


@pytest.mark.parametrize(("split", "samples", "pictures"), [("train", 140, 40), ("val", 38, 8), ("test", 52, 12)])
def test_the_runnable_splits_are_complete(split, samples, pictures):
    settings = {"images": True, "training": split == "train", "pid_splits": Path("pid_splits_runnable.json")}
    read = read_scienceqa(ROOT / "scienceqa", split=split, **settings)
    assert len(read) == samples
    images = [read_image(sample.image) for sample in read if sample.image]
    assert len(images) == pictures and {image.mode for image in images} == {"RGB"}


def test_the_sample_of_problems_is_read_with_a_line_on_what_it_lacks(caplog):
    read = read_scienceqa(
        ROOT / "scienceqa", split="train", images=False, training=True, captions=Path("captions.json")
    )
    assert len(read) == 291 and "ids without a question in problems.json: 12,435" in caplog.text
    with pytest.raises(InputError, match="27 of 27 pictures are missing"):
        read_scienceqa(ROOT / "scienceqa", split="train", images=True, training=True)


def test_the_whole_test_split_is_read():
    settings = {"images": False, "training": False, "problems": Path("problems_test.json")}
    assert len(read_scienceqa(ROOT / "scienceqa", split="test", **settings)) == 4241


@pytest.mark.parametrize(
    ("reader", "place", "splits"),
    [
        ("scienceqa", "scienceqa", ("train", "val", "test")),
        ("scienceqa", "real/scienceqa_resplit", ("train", "val", "test")),
        ("coco_captions", "coco_caption/annotations/captions_karpathy_val.json", ("val",)),
        ("coco_captions", "coco_mini", ("train",)),
        ("own", "coco_mini", ("all",)),
        ("coco_captions", "real/coco_found", ("train", "test")),
        ("coco_captions", "real/flickr8k", ("train", "val", "test")),
        ("own", "real/flickr8k", ("all",)),
    ],
)
def test_no_field_of_the_published_files_is_called_unused(reader, place, splits, caplog):
    for split in splits:
        settings = {"on_bad": "skip"} if reader == "own" else {}
        assert read(reader, ROOT / place, training=split == "train", split=split, images=False, **settings)
    assert "not used" not in caplog.text


def test_own_data_in_scienceqas_layout_name_the_texts_that_are_not_learned(caplog):
    assert read("own", ROOT / "scienceqa", training=True, split="all", images=False, on_bad="skip")
    told = "not used: `lecture` (563 items, the first: item 0), `solution` (581 items, the first: item 1)."
    assert told in caplog.text


def test_the_check_tells_what_the_sample_lacks(capsys):
    assert main(["--root", str(ROOT / "scienceqa"), "--check"]) == UNSOUND
    out = capsys.readouterr().out
    assert "ids without a question in problems.json: 20,552" in out
    assert "missing pictures: 136" in out and "pictures decoded: 60" in out


def test_awkward_images():
    files = [file for file in sorted((ROOT / "awkward_images").rglob("*")) if file.is_file()]
    assert len(files) > 10
    for file in files:
        if file.name in BAD_IMAGES:
            with pytest.raises(InputError, match=BAD_IMAGES[file.name]):
                read_image(file)
        else:
            picture = read_image(file)
            assert picture.mode == "RGB" and max(high for _, high in picture.getextrema()) > 100, file


def test_pictures_taken_at_every_angle_stand_upright_alike():
    portraits = [read_image(ROOT / f"awkward_images/exif/Portrait_{number}.jpg") for number in (1, 3, 6, 8)]
    assert {picture.size for picture in portraits} == {(1200, 1800)}
    small = [picture.resize((4, 6)).tobytes() for picture in portraits]
    assert all(abs(one - other) <= 6 for other_one in small[1:] for one, other in zip(small[0], other_one, strict=True))


@pytest.mark.parametrize(("name", "kept"), [("alpaca_first2500.json", 2499), ("alpaca_en_demo.json", 999)])
def test_alpaca_files(name, kept):
    samples = read_alpaca(ROOT / "alpaca" / name, training=True, split="all")
    assert len(samples) == kept
    parts = [read_alpaca(ROOT / "alpaca" / name, training=True, split=split) for split in ("train", "val")]
    assert len(parts[0]) + len(parts[1]) == kept
    assert not {sample.prompt for sample in parts[0]} & {sample.prompt for sample in parts[1]}


def test_coco_mini_is_read_and_mixed_with_instructions():
    captions = read_coco_captions(ROOT / "coco_mini", split="train", training=True, source="captions")
    assert len(captions) == 225
    assert len(read_coco_captions(ROOT / "coco_mini", split="train", training=False)) == 45
    instructions = read_alpaca(ROOT / "alpaca/alpaca_en_demo.json", training=True, source="instructions", limit=100)
    encoder = SampleEncoder(byte_level(), 400, long_answers="cut")
    sources = {"captions": encoder.encode_many(captions), "instructions": encoder.encode_many(instructions)}
    mixture = TurnsMixture(sources, StepShape(16, 16, seed=0), encoder.pad_id)
    batches = [batch for step in range(mixture.steps_per_epoch) for batch in mixture.step_batches(step)]
    assert sum(len(batch.samples) for batch in batches) == 325
    assert all(batch.supervised_tokens for batch in batches)
