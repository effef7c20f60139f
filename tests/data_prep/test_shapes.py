"""The made-up world: upstream layouts, determinism, and answers that the text does not give away."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from data_prep.shapes import WorldSizes, main, make_world
from data_prep.world.questions import QuestionWriter
from mmadapter.errors import InputError

SIZES = WorldSizes(
    train=300, val=60, test=200, coco_train=40, coco_restval=10, coco_val=8, coco_test=8, instructions=200
)
FIELDS = [
    "question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic", "category", "skill",
    "lecture", "solution", "split",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    make_world(out, seed=3, sizes=SIZES)
    return out


@pytest.fixture(scope="module")
def problems(world) -> dict:
    return json.loads((world / "scienceqa" / "problems.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(world, tmp_path):
    make_world(tmp_path / "again", seed=3, sizes=SIZES)
    make_world(tmp_path / "other", seed=4, sizes=SIZES)
    assert digests(tmp_path / "again") == digests(world)
    assert digests(tmp_path / "other") != digests(world)


def test_problems_have_upstreams_fields_and_ranges(problems):
    assert list(problems) == [str(number) for number in range(1, len(problems) + 1)]
    for problem in problems.values():
        assert list(problem) == FIELDS
        assert 2 <= len(problem["choices"]) <= 5 and len(set(problem["choices"])) == len(problem["choices"])
        assert 0 <= problem["answer"] < len(problem["choices"])
        assert problem["grade"] in {f"grade{number}" for number in range(1, 13)}
    assert {problem["task"] for problem in problems.values()} == {"closed choice", "yes or no", "true-or false"}
    assert {len(problem["choices"]) for problem in problems.values()} == {2, 3, 4, 5}
    assert {bool(problem["lecture"]) for problem in problems.values()} == {True, False}
    assert {bool(problem["solution"]) for problem in problems.values()} == {True, False}


def test_splits_agree_with_the_problems(world, problems):
    splits = json.loads((world / "scienceqa" / "pid_splits.json").read_text())
    assert set(splits) == {"train", "val", "test", "trainval", "minitrain", "minival", "minitest"}
    for split in ("train", "val", "test"):
        assert splits[split] == [pid for pid, problem in problems.items() if problem["split"] == split]
        assert splits[f"mini{split}"] == splits[split][: len(splits[split]) // 10]
    assert sorted(splits["trainval"]) == sorted(splits["train"] + splits["val"])


def test_every_picture_lies_where_upstream_keeps_it(world, problems):
    for pid, problem in problems.items():
        path = world / "scienceqa" / "images" / problem["split"] / pid / "image.png"
        assert path.exists() == (problem["image"] == "image.png")
    with Image.open(path if path.exists() else next(world.rglob("image.png"))) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_eight_columns_are_filled(problems, split):
    chosen = [problem for problem in problems.values() if problem["split"] == split]
    grades = [int(problem["grade"].removeprefix("grade")) for problem in chosen]
    columns = {subject: sum(problem["subject"] == subject for problem in chosen) for subject in subjects(chosen)}
    columns |= {
        "TXT": sum(bool(problem["hint"]) for problem in chosen),
        "IMG": sum(problem["image"] is not None for problem in chosen),
        "NO": sum(not problem["hint"] and problem["image"] is None for problem in chosen),
        "G1-6": sum(grade <= 6 for grade in grades),
        "G7-12": sum(grade > 6 for grade in grades),
    }
    assert len(columns) == 8 and min(columns.values()) >= 20, columns
    assert subjects([problem for problem in chosen if problem["image"]]) == subjects(chosen)
    assert any(problem["image"] and problem["hint"] for problem in chosen)


def subjects(problems: list[dict]) -> set[str]:
    return {problem["subject"] for problem in problems}


def test_no_two_pictures_are_equal(world):
    paths = [*world.rglob("*.png"), *world.rglob("*.jpg")]
    assert len({hashlib.sha256(Image.open(path).tobytes()).hexdigest() for path in paths}) == len(paths) > 400


def test_picture_answers_are_balanced_over_words_and_letters():
    writer = QuestionWriter("0", "train")
    words, letters = defaultdict(Counter), defaultdict(Counter)
    for _ in range(3000):
        record = writer.picture_problem().record
        words[record["question"]][record["choices"][record["answer"]]] += 1
        letters[record["question"], len(record["choices"])][record["answer"]] += 1
    for counts in words.values():
        assert max(counts.values()) - min(counts.values()) <= 1, counts
    for (_, choices), counts in letters.items():
        assert len(counts) == choices and max(counts.values()) - min(counts.values()) <= 1, counts


def test_the_listed_choices_do_not_tell_the_answer():
    writer = QuestionWriter("1", "train")
    right: Counter[str] = Counter()
    listed: Counter[str] = Counter()
    for _ in range(6000):
        record = writer.picture_problem().record
        right[record["choices"][record["answer"]]] += len(record["choices"])
        listed.update(record["choices"])
    ratios = [right[word] / listed[word] for word in listed]
    assert min(ratios) > 0.85 and max(ratios) < 1.15  # expected wins of a word = its share of the choices


def test_picture_hints_never_hold_a_choice(problems):
    for problem in problems.values():
        if problem["image"]:
            assert not set(problem["hint"].lower().strip(".").split()) & set(problem["choices"])


def test_coco_files_have_both_layouts(world):
    karpathy = json.loads((world / "coco" / "dataset_coco.json").read_text())
    assert karpathy["dataset"] == "coco"
    assert Counter(image["split"] for image in karpathy["images"]) == {"train": 40, "restval": 10, "val": 8, "test": 8}
    official = {
        year: json.loads((world / "coco" / "annotations" / f"captions_{year}.json").read_text())
        for year in ("train2014", "val2014")
    }
    for image in karpathy["images"]:
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
        assert (world / "coco" / image["filepath"] / image["filename"]).exists()
        assert image["filepath"] == ("train2014" if image["split"] == "train" else "val2014")
        assert [sentence["sentid"] for sentence in image["sentences"]] == image["sentids"]
        file = official[image["filepath"]]
        told = [note["caption"] for note in file["annotations"] if note["image_id"] == image["cocoid"]]
        assert told == [sentence["raw"] for sentence in image["sentences"]] and len(set(told)) == 5
    assert {entry["id"] for file in official.values() for entry in file["images"]} == {
        image["cocoid"] for image in karpathy["images"]
    }


def test_instructions_are_different_and_some_need_no_input(world):
    records = json.loads((world / "alpaca.json").read_text())
    assert all(list(record) == ["instruction", "input", "output"] and record["output"] for record in records)
    assert len({(record["instruction"], record["input"]) for record in records}) == SIZES.instructions
    assert 20 < sum(not record["input"] for record in records) < SIZES.instructions - 20
    ordered = [record for record in records if record["instruction"] == "Put the words in order."]
    assert all(record["output"].split(", ") == sorted(record["input"].split(", ")) for record in ordered)


def test_a_world_is_made_once_and_never_mixed(tmp_path):
    small = WorldSizes(12, 6, 6, 4, 2, 2, 2, 10)
    make_world(tmp_path / "w", sizes=small)
    before = digests(tmp_path / "w")
    with pytest.raises(InputError, match="exists already"):
        make_world(tmp_path / "w", sizes=small)
    assert digests(tmp_path / "w") == before


def test_an_interrupted_world_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.shapes.instruction_records", stop)
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "w", sizes=WorldSizes(12, 6, 6, 4, 2, 2, 2, 10))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_world_and_refuses_to_overwrite(tmp_path, capsys):
    small = ["--train", "12", "--val", "6", "--test", "6", "--coco-train", "4", "--instructions", "10"]
    assert main(["--out", str(tmp_path / "w"), *small]) == 0
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["scienceqa"]["train"] == 12
    assert main(["--out", str(tmp_path / "w"), *small]) == 2
    assert "exists already" in capsys.readouterr().err


def test_short_captions_name_the_attributes_that_stand_beside_them(world):
    images = json.loads((world / "short_captions.json").read_text())["images"]
    assert {image["split"] for image in images} == {"train", "restval", "val", "test"}
    for image in images:
        told, caption = image["attributes"], image["sentences"][0]["raw"]
        assert caption.partition(" ")[2] == f"{told['color']} {told['shape']} on a {told['background']} background."
