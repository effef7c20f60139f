"""mmadapter check scienceqa: what it finds, what it writes, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.command import SOUND, UNSOUND, UNUSABLE
from data_prep.scienceqa import main
from tests.data.small_files import problem, write_scienceqa


def check(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), *arguments])


@pytest.fixture(name="root")
def _root(tmp_path):
    return write_scienceqa(tmp_path / "scienceqa")


def change(file: Path, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_a_sound_folder(root, capsys):
    assert check(root, "--check") == SOUND
    out = capsys.readouterr().out
    assert "pictures decoded: 2" in out and out.rstrip().endswith("Sound, but for the notes.")
    assert "not the official ScienceQA, whose sizes are: train 12,726, val 4,241, test 4,241" in out
    assert len(out.splitlines()) < 25
    assert not list(root.glob("*.jsonl"))


def test_the_command_runs_from_a_shell(root):
    command = [sys.executable, "-m", "data_prep.scienceqa", "--root", str(root.parent), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == SOUND and "pictures decoded: 2" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda content: content["3"].update(answer=7), "bad questions: 1, the first: question 3: `answer` is 7"),
        (lambda content: content["1"].pop("choices"), "bad questions: 1, the first: question 1: the field `choices`"),
        (lambda content: content["1"].update(split="val"), "split differs: 1, the first: question 1 is in train"),
        (lambda content: content.pop("4"), "ids without a question in problems.json: 1, the first: 4 (val)"),
    ],
)
def test_defects_fail_or_are_left_out_with_a_count(root, tmp_path, capsys, edit, line):
    change(root / "problems.json", edit)
    assert check(root, "--check", "none", "--out", str(tmp_path / "out")) == UNSOUND
    assert f"defect: {line}" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert check(root, "--check", "none", "--on-bad", "skip", "--out", str(tmp_path / "out")) == SOUND
    assert f"note:   {line}" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["left_out"] == {line.partition(":")[0]: {"items": 1}}
    assert sum(split["kept"] for split in manifest["splits"].values()) == 5


def test_an_id_in_two_splits(root, capsys):
    change(root / "pid_splits.json", lambda content: content["test"].append("1"))
    assert check(root) == UNSOUND
    assert "split differs: 1, the first: question 1 is in test, its own `split` is 'train'" in capsys.readouterr().out


class TestImages:
    def test_absent_ones(self, root, tmp_path, capsys):
        (root / "images/train/2/image.png").unlink()
        assert check(root) == UNSOUND
        assert "defect: missing pictures: 1, the first: question 2: images/train/2/image.png" in capsys.readouterr().out
        for policy, ids, image in (("skip", ["1", "3"], "-"), ("no_image", ["1", "2", "3"], None)):
            assert check(root, "--missing-image", policy, "--out", str(tmp_path / policy)) == SOUND
            lines = [json.loads(line) for line in (tmp_path / policy / "train.jsonl").read_text().splitlines()]
            assert [line["id"] for line in lines] == ids
            assert policy == "skip" or lines[1]["image"] is image and lines[1]["has_image"]

    def test_unreadable_ones_are_found_where_images_are_decoded(self, root, capsys):
        (root / "images/test/5/image.png").write_bytes(b"no picture")
        assert check(root, "--check", "none") == SOUND
        for arguments in ((), ("--check",), ("--check", "all")):
            assert check(root, *arguments) == UNSOUND
        assert (
            "defect: unreadable pictures: 1, the first: question 5: images/test/5/image.png: this is no picture"
            in capsys.readouterr().out
        )


def test_unknown_caption_ids_are_counted(root, capsys):
    (root / "captions.json").write_text(json.dumps({"captions": {"2": "a dog", "77": "what"}}))
    assert check(root) == UNSOUND
    assert "unknown caption ids in captions.json: 1, the first: 77" in capsys.readouterr().out
    assert check(root, "--on-bad", "skip") == SOUND


def test_test_questions_that_are_train_questions_are_counted(root, capsys):
    assert check(root) == SOUND
    assert "note:   items of test whose question or picture is in train, too: 1" in capsys.readouterr().out


def test_a_truncated_file_is_unusable(root, capsys):
    file = root / "problems.json"
    file.write_bytes(file.read_bytes()[:-200])
    assert check(root) == UNUSABLE
    error = capsys.readouterr().err
    assert "ends too early at byte" in error and 'last whole entry is "5"' in error


def test_a_missing_folder_is_unusable(tmp_path, capsys):
    assert check(tmp_path / "nowhere") == UNUSABLE
    assert "there is no problems.json" in capsys.readouterr().err


class TestOutput:
    def test_lines_hold_prompt_parts_target_and_flags(self, root, tmp_path):
        assert check(root, "--out", str(tmp_path)) == SOUND
        line = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[1])
        expected = {"id": "2", "context": "A dog and a cat stand there.", "options": "(A) dog (B) cat", "answer": 0}
        expected |= {"target": "The answer is A.", "image": "images/train/2/image.png", "has_hint": True}
        assert expected.items() <= line.items()
        assert (root / line["image"]).is_file()

    def test_the_same_bytes_for_any_worker_count(self, root, tmp_path):
        for workers in ("1", "1", "4"):
            folder = tmp_path / f"{workers}-{len(list(tmp_path.iterdir()))}"
            assert check(root, "--check", "all", "--workers", workers, "--out", str(folder)) == SOUND
        files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in tmp_path.glob("?-*")]
        assert len(files) == 3 and files[0] == files[1] == files[2]
        assert set(files[0]) == {"train.jsonl", "val.jsonl", "test.jsonl", "manifest.json"}

    def test_the_manifest_accounts_for_everything(self, root, tmp_path):
        assert check(root, "--limit", "2", "--out", str(tmp_path)) == SOUND
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["splits"]["train"] == {"items": 2, "with_image": 1, "kept": 2, "dropped": {}}
        assert manifest["inputs"].keys() == {"problems.json", "pid_splits.json"}
        assert manifest["outputs"]["train.jsonl"]["lines"] == 2
        assert str(tmp_path) not in json.dumps(manifest) and manifest["command"].endswith("--limit 2")


def test_bad_arguments_are_refused(root):
    with pytest.raises(SystemExit) as caught:
        check(root, "--check", "some")
    assert caught.value.code == 2


def test_without_pid_splits_the_own_field_decides(root, capsys):
    (root / "pid_splits.json").unlink()
    assert check(root) == SOUND
    assert "there is no pid_splits.json" in capsys.readouterr().out


def test_unnamed_questions_are_counted(root, capsys):
    change(root / "problems.json", lambda content: content.update({"9": problem()}))
    assert check(root) == SOUND
    assert "1 questions are named by no split" in capsys.readouterr().out
