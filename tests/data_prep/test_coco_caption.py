"""mmadapter check coco_caption: what it finds, what it writes, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from data_prep import command as data_command
from data_prep.coco_caption import main
from data_prep.command import SOUND, UNSOUND, UNUSABLE
from mmadapter.vision.images import read_image
from tests.data.reading import read
from tests.data.small_captions import (
    coco_name,
    dialog,
    save_picture,
    web_pair,
    write_dialogs,
    write_json,
    write_lavis,
    write_official_with_lists,
    write_shard,
    write_shards,
    write_table,
)
from tests.data.small_files import write_karpathy

FIRST_OF_TRAIN2014 = f"train2014/{coco_name(1, 'train2014')}"


def prepare(root: Path, out: Path, *arguments: str) -> int:
    return main(["--root", str(root), "--out", str(out), *arguments])


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


@pytest.fixture(name="out")
def _out(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("write", "counts", "first"),
    [
        (write_karpathy, {"train": (2, 4), "val": (1, 2), "test": (1, 2)}, f"val2014/{coco_name(1)}"),
        (write_lavis, {"train": (2, 3), "val": (1, 2), "test": (1, 2)}, f"val2014/{coco_name(1)}"),
        (write_official_with_lists, {"train": (3, 6), "val": (1, 2), "test": (1, 2)}, FIRST_OF_TRAIN2014),
        (write_table, {"train": (2, 3)}, "a.jpg"),
        (write_dialogs, {"train": (2, 2)}, "images/00000/000000001.jpg"),
        (write_shards, {"train": (4, 4)}, "00000.tar/000000000.jpg@512"),
    ],
)
def test_every_layout_becomes_lines_that_read_the_same(tmp_path, out, capsys, write, counts, first):
    root = write(tmp_path / "in")
    assert prepare(root, out, "--check", "all") == SOUND
    told = manifest(out)
    assert {name: (one["kept"], one["captions"]) for name, one in told["splits"].items()} == counts
    assert told["facts"]["captions read"] == sum(captions for _, captions in counts.values()) and told["left_out"] == {}
    assert all(len(one["sha256"]) == 64 and one["bytes"] for one in told["inputs"].values())
    assert lines(out / "train.jsonl")[0]["image"] == first
    screen = capsys.readouterr().out
    assert f"pictures decoded: {sum(pictures for pictures, _ in counts.values())}" in screen
    assert len(screen.splitlines()) < 25
    for split, (pictures, captions) in counts.items():
        samples = read("coco_captions", root, path=out / f"{split}.jsonl", split=split, source="c", training=True)
        assert len(samples) == captions and len({sample.image for sample in samples}) == pictures
        assert all(read_image(sample.image).size == (8, 8) for sample in samples)


def test_the_question_of_a_dialog_is_kept_or_dropped(tmp_path, out):
    root = write_dialogs(tmp_path / "in")
    assert prepare(root, out) == SOUND
    assert lines(out / "train.jsonl")[0]["instruction"] == "What is this?"
    assert prepare(root, out, "--instruction", "caption") == SOUND
    assert "instruction" not in lines(out / "train.jsonl")[0]
    assert "--instruction caption" in manifest(out)["command"]


def test_what_a_file_says_of_its_pictures_is_kept(tmp_path, out):
    root = write_karpathy(tmp_path / "in")
    content = json.loads((root / "dataset_coco.json").read_text())
    content["images"][0]["attributes"] = {"color": "red"}
    write_json(root / "dataset_coco.json", content)
    assert prepare(root, out) == SOUND
    assert [line.get("attributes") for line in lines(out / "train.jsonl")] == [{"color": "red"}, None]


def test_references_are_in_the_official_layout(tmp_path, out, capsys):
    assert prepare(write_karpathy(tmp_path / "in"), out) == SOUND
    theirs = COCO(str(out / "captions_test.json"))
    assert theirs.getImgIds() == [4]
    assert [one["caption"] for one in theirs.imgToAnns[4]] == ["A dog number 4.", 'The "dog"']
    assert not (out / "captions_train.json").exists()


def test_the_command_runs_from_a_shell(tmp_path, out):
    write_karpathy(tmp_path / "in")
    command = [sys.executable, "-m", "data_prep.coco_caption", "--root", str(tmp_path / "in"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == SOUND and "pictures decoded: 4" in done.stdout and done.stderr == ""


def repeat_id(root: Path) -> None:
    file = root / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][3]["cocoid"] = 1
    write_json(file, content)


def empty_caption(root: Path) -> None:
    file = root / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][0]["sentences"][0]["raw"] = " \u2028"
    write_json(file, content)


def remove(root: Path) -> None:
    (root / "val2014" / coco_name(1)).unlink()


def damage_picture(root: Path) -> None:
    (root / "val2014" / coco_name(1)).write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "line", "lost"),
    [
        (remove, "missing pictures: 1, the first: dataset_coco.json, image 1: val2014/COCO", 2),
        (damage_picture, "unreadable pictures: 1, the first: dataset_coco.json, image 1: val2014/COCO", 2),
        (repeat_id, "ids that stand twice: 1, the first: dataset_coco.json, images[3]: image id 1", 2),
        (empty_caption, "empty captions: 1, the first: dataset_coco.json, image 1, caption 10", 1),
    ],
)
def test_defects_fail_or_are_left_out_with_a_count(tmp_path, out, capsys, damage, line, lost):
    damage(write_karpathy(tmp_path / "in"))
    assert prepare(tmp_path / "in", out) == UNSOUND
    assert f"defect: {line}" in capsys.readouterr().out
    assert not out.exists()
    assert prepare(tmp_path / "in", out, "--on-bad", "skip") == SOUND
    assert f"note:   {line}" in capsys.readouterr().out
    told = manifest(out)
    assert sum(one["captions"] for one in told["left_out"].values()) == lost
    assert told["facts"]["captions read"] == 8 == lost + sum(one["captions"] for one in told["splits"].values())


def test_a_picture_of_two_splits_stays_where_it_is_scored(tmp_path, out, capsys):
    root = write_lavis(tmp_path / "in")
    entry = {"image": f"val2014/{coco_name(4)}", "caption": "a leak", "image_id": "coco_4"}
    file = root / "annotations/coco_karpathy_train.json"
    write_json(file, [*json.loads(file.read_text()), entry])
    assert prepare(root, out) == UNSOUND
    told = "items in two splits: 1, the first: coco_karpathy_train.json, image 4 (train) is in test, too"
    assert told in capsys.readouterr().out
    assert prepare(root, out, "--on-bad", "skip") == SOUND
    assert [line["image_id"] for line in lines(out / "train.jsonl")] == [1, 2]
    assert [line["image_id"] for line in lines(out / "test.jsonl")] == [4]
    assert manifest(out)["splits"]["train"]["dropped"] == {"items in two splits": 1}


def test_the_same_file_under_two_ids_is_a_leak_too(tmp_path, out, capsys):
    entries = {"train": [("a.jpg", 1), ("b.jpg", 2)], "test": [("a.jpg", 3)]}
    for split, listed in entries.items():
        found = [{"image_id": n, "image": name, "captions": [{"id": n, "caption": "x"}]} for name, n in listed]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    for name in ("a.jpg", "b.jpg"):
        save_picture(tmp_path / name)
    assert prepare(tmp_path, out) == UNSOUND
    assert "items in two splits: 1, the first: train.jsonl, image 1 (train) is in test" in capsys.readouterr().out


def test_without_both_lists_there_is_no_train(tmp_path, out, capsys):
    root = write_official_with_lists(tmp_path / "in")
    (root / "karpathy_test_images.txt").unlink()
    assert prepare(root, out) == SOUND
    assert "note:   4 pictures in no list (train needs both lists) are ignored" in capsys.readouterr().out
    assert manifest(out)["splits"].keys() == {"val"}


def test_repeated_captions_are_notes_or_with_strict_defects(tmp_path, out, capsys):
    root = write_table(tmp_path / "in", ["a.jpg\tone", "a.jpg\tone "])
    assert prepare(root, out) == SOUND
    line = "pictures that have the same caption twice: 1, the first: captions.csv, line 2"
    assert f"note:   {line}" in capsys.readouterr().out
    assert manifest(out)["splits"]["train"]["captions"] == 2
    assert prepare(root, out, "--strict") == UNSOUND
    assert f"defect: {line}" in capsys.readouterr().out


def test_what_lies_beside_shards_is_counted(tmp_path, out, capsys):
    assert prepare(write_shards(tmp_path / "in"), out) == SOUND
    screen = capsys.readouterr().out
    assert "note:   2 *.parquet beside the shards are ignored" in screen
    assert "note:   2 *_stats.json beside the shards are ignored" in screen


def test_a_cut_shard_and_a_bad_dialog(tmp_path, out, capsys):
    shard = write_shard(tmp_path / "in/00000.tar", *(web_pair(f"{number:09d}") for number in range(3)))
    shard.write_bytes(shard.read_bytes()[: 512 * 15])
    assert prepare(tmp_path / "in", out) == UNSOUND
    assert "shards that are cut off or no tar archives: 1" in capsys.readouterr().out
    assert prepare(tmp_path / "in", out, "--on-bad", "skip") == SOUND
    assert len(lines(out / "train.jsonl")) == 2
    root = write_dialogs(tmp_path / "dialogs", [dialog(1), dialog(2, "no mark")])
    assert prepare(root, out, "--on-bad", "skip") == SOUND
    assert manifest(out)["left_out"] == {"items whose human turn has not <image> once": {"captions": 1, "items": 1}}


def test_unlooked_for_pictures_are_said_to_be(tmp_path, out, capsys):
    root = write_karpathy(tmp_path / "in")
    for picture in (root / "val2014").iterdir():
        picture.unlink()
    assert prepare(root, out, "--check", "none") == SOUND
    assert "note:   pictures were not looked for (--check none)" in capsys.readouterr().out


def test_limit_counts_the_usable_pictures_of_a_split(tmp_path, out):
    assert prepare(write_karpathy(tmp_path / "in"), out, "--limit", "1") == SOUND
    told = manifest(out)
    assert told["splits"]["train"]["kept"] == 1 and len(lines(out / "train.jsonl")) == 1
    assert told["command"].endswith("--limit 1") and str(tmp_path) not in json.dumps(told)


def test_the_same_bytes_for_any_worker_count_and_a_second_time(tmp_path):
    root = write_karpathy(tmp_path / "in")
    (root / "val2014" / coco_name(2)).write_bytes(b"no")
    for number, workers in enumerate(("1", "1", "4")):
        assert prepare(root, tmp_path / f"out{number}", "--workers", workers, "--on-bad", "skip") == SOUND
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in tmp_path.glob("out?")]
    assert len(files) == 3 and files[0] == files[1] == files[2] and len(files[0]) == 6


def test_a_write_that_fails_leaves_the_old_files_whole(tmp_path, out, monkeypatch, capsys):
    root = write_karpathy(tmp_path / "in")
    assert prepare(root, out) == SOUND
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full_disk(path: Path, entries) -> dict:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_command, "_write_lines", full_disk)
    assert prepare(root, out, "--limit", "1") == UNUSABLE
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("files", "arguments", "told"),
    [
        ({}, (), "expected one file of captions (COCO (dataset_coco.json; "),
        ({"a.json": "[]", "b.json": "[]"}, (), "found a.json, b.json. Name it with --path"),
        ({}, ("--path", "."), "there are no shards *.tar there"),
        ({}, ("--path", "gone.json"), "gone.json: there is no such file or folder (--path)"),
        ({"dataset_coco.json": '{"images": [{"cocoid": 1}, {'}, (), "last whole entry is images[0]"),
    ],
)
def test_what_cannot_be_read(tmp_path, out, capsys, files, arguments, told):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert prepare(tmp_path, out, *arguments) == UNUSABLE
    assert told in capsys.readouterr().err and not out.exists()


def test_a_missing_folder(tmp_path, out, capsys):
    assert prepare(tmp_path / "gone", out) == UNUSABLE
    assert "there is no such folder" in capsys.readouterr().err


def test_captions_are_not_kept_without_their_picture(tmp_path, out, capsys):
    write_karpathy(tmp_path)
    assert prepare(tmp_path, out, "--missing-image", "no_image") == UNUSABLE
    assert "Allowed: error, skip." in capsys.readouterr().err and not out.exists()
