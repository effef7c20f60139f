"""mmadapter check instruct: what it finds, what it writes, how it exits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.command import SOUND, UNSOUND, UNUSABLE
from data_prep.instruct import main
from tests.data.reading import read_alpaca, read_llava


def check(root: Path, *arguments: str) -> int:
    return main(["--root", str(root), *arguments])


def dialog(*texts: str, **fields) -> dict:
    said = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "7", "conversations": said} | fields


def write(file: Path, items) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(items))
    return file


@pytest.fixture(name="alpaca")
def _alpaca(tmp_path):
    items = [{"instruction": f"Say {n}", "input": "No input" * (n == 3), "output": str(n)} for n in range(40)]
    items[5]["output"] = " "
    return write(tmp_path / "alpaca" / "alpaca_data.json", items)


@pytest.fixture(name="llava")
def _llava(tmp_path):
    """30 dialogs of two turns about 30 pictures, and one without a picture."""
    items = []
    for number in range(30):
        name = f"{number}.jpg"
        (tmp_path / "llava").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "llava" / name)
        items.append(dialog(f"<image>\nWho {number}?", "A dog.", "Why?", "So.", image=name))
    return write(tmp_path / "llava" / "llava.json", [*items, dialog("Who?", "I.")])


def changed(file: Path, number: int, item) -> Path:
    items = json.loads(file.read_text())
    items[number] = item
    return write(file, items)


def test_alpaca_is_split_and_read_again(alpaca, tmp_path, capsys):
    out = tmp_path / "out"
    assert check(alpaca.parent, "--out", str(out)) == SOUND
    text = capsys.readouterr().out
    assert (
        'inputs that say "no input": 1' in text
        and "empty output: 1, the first: alpaca_data.json, item 5 (left out)" in text
    )
    assert len(text.splitlines()) < 20
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["command"] == "mmadapter check instruct" and manifest["versions"]["mmadapter"]
    assert manifest["splits"]["train"] == {
        "items": 36, "with_image": 0, "kept": 36, "dropped": {},
    }  # fmt: skip
    assert manifest["splits"]["val"]["kept"] == 3 and manifest["left_out"] == {"empty output": {"items": 1}}
    assert manifest["inputs"]["alpaca_data.json"]["sha256"] == hashlib.sha256(alpaca.read_bytes()).hexdigest()
    for split in ("train", "val"):
        content = (out / f"{split}.jsonl").read_bytes()
        assert manifest["outputs"][f"{split}.jsonl"]["sha256"] == hashlib.sha256(content).hexdigest()
        written = read_alpaca(out / f"{split}.jsonl", training=True, split="all")
        direct = read_alpaca(alpaca, training=True, split=split)
        assert [sample.segments for sample in written] == [sample.segments for sample in direct]


def test_llava_is_written_without_the_marks(llava, tmp_path, capsys):
    assert check(llava, "--out", str(tmp_path / "out"), "--check") == SOUND
    text = capsys.readouterr().out
    assert text.startswith("dialogs: ") and "pictures decoded: 30" in text
    for split in ("train", "val"):
        written = read_llava(tmp_path / "out" / f"{split}.jsonl", training=True, split="all", root=llava.parent)
        direct = read_llava(llava, training=True, split=split)
        assert [(one.segments, one.image) for one in written] == [(one.segments, one.image) for one in direct]
    assert "<image>" not in (tmp_path / "out" / "train.jsonl").read_text()


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (
            dialog("<image> a <image>", "b"),
            "items with several pictures: 1, the first: llava.json, item 4: <image> stands 2 times",
        ),
        (dialog("<image> a", "b"), "bad items: 1, the first: llava.json, item 4: <image> stands in the text"),
        ({"id": 4}, "bad items: 1, the first: llava.json, item 4: the field `conversations` is missing"),
        (dialog("a", "b", image="no.jpg"), "missing pictures: 1, the first: llava.json, item 4: no.jpg"),
        (dialog("a", "b", image="bad.jpg"), "unreadable pictures: 1, the first: llava.json, item 4: bad.jpg"),
    ],
)
def test_defects_fail_or_are_left_out_with_a_count(llava, tmp_path, capsys, item, line):
    (llava.parent / "bad.jpg").write_text("text")
    changed(llava, 4, item)
    out = tmp_path / "out"
    assert check(llava, "--check", "--out", str(out)) == UNSOUND
    assert f"defect: {line}" in capsys.readouterr().out and not out.exists()
    assert check(llava, "--check", "--on-bad", "skip", "--out", str(out)) == SOUND
    assert f"note:   {line}" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert sum(split["kept"] for split in manifest["splits"].values()) == 30
    assert manifest["left_out"] == {line.partition(":")[0]: {"items": 1}}


def test_weak_dialogs_are_left_out_by_reason(tmp_path, capsys):
    items = [dialog("a", "b"), dialog("c", "d", "e"), dialog("", "b"), dialog("a")]
    items += [{"conversations": [{"from": "gpt", "value": "a"}]}, {"conversations": [{"from": "bing", "value": "a"}]}]
    assert check(write(tmp_path / "s.json", items), "--out", str(tmp_path / "out")) == SOUND
    text = capsys.readouterr().out
    assert text.startswith("dialogs: ")
    for reason in ("empty turn", "no answered turn", "starts with gpt", "another role than human and gpt"):
        assert f"{reason}: 1, the first: s.json, item" in text
    assert "1 dialogs end with a question" in text


def test_repeated_items_and_overlaps_are_notes_or_with_strict_defects(tmp_path, capsys):
    items = [{"instruction": f"Say {n % 9}", "output": str(n % 9)} for n in range(12)]
    write(tmp_path / "train.json", items)
    write(tmp_path / "val.json", [{"instruction": "Say 3", "output": "other"}, {"instruction": "x", "output": "y"}])
    assert check(tmp_path, "--out", str(tmp_path / "out")) == SOUND
    text = capsys.readouterr().out
    assert "note:   repeated items, word for word: 3" in text
    assert "items of val whose question or picture is in train, too: 1" in text
    assert json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["val"]["kept"] == 2
    assert check(tmp_path, "--strict") == UNSOUND
    assert "defect: repeated items" in capsys.readouterr().out


def test_files_that_cannot_be_read(alpaca, tmp_path, capsys):
    whole = alpaca.read_text()
    alpaca.write_text(whole[:200])
    assert check(alpaca) == UNUSABLE
    error = capsys.readouterr().err
    assert "ends too early at byte 197 of 200" in error and "the last whole entry is [2]" in error
    (tmp_path / "l.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"x"\n')
    assert check(tmp_path / "l.jsonl") == UNUSABLE and "l.jsonl, line 2" in capsys.readouterr().err
    assert check(write(tmp_path / "o.json", [{"question": "a"}])) == UNUSABLE
    assert "no item has `conversations` or `instruction`" in capsys.readouterr().err
    write(alpaca.parent / "second.json", [])
    assert check(alpaca.parent) == UNUSABLE and "found: alpaca_data.json, second.json" in capsys.readouterr().err


def test_the_output_is_the_same_for_any_workers_and_place(llava, tmp_path):
    contents = []
    for workers, name in (("1", "a"), ("3", "b"), ("3", "b")):
        assert check(llava, "--check", "--workers", workers, "--out", str(tmp_path / name)) == SOUND
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1] == contents[2] and len(contents[0]) == 3


def test_limit_counts_items(alpaca, capsys):
    assert check(alpaca, "--limit", "20", "--val-size", "1") == SOUND
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("train", "val"))]
    assert [(row[0], row[1]) for row in rows] == [("train", "20"), ("val", "1")]


def test_the_command_runs_from_a_shell(alpaca):
    command = [sys.executable, "-m", "data_prep.instruct", "--root", str(alpaca)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == SOUND and done.stdout.startswith("instructions: ") and done.stderr == ""
