"""python -m data_prep.own: what it finds in one's own data, what it writes, how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data_prep.command import SOUND, UNSOUND, UNUSABLE
from data_prep.own import main
from tests.data.reading import read


def write(file: Path, items) -> Path:
    file.write_text(json.dumps(items))
    return file


def picture(folder: Path, name: str) -> str:
    Image.new("RGB", (8, 8)).save(folder / name)
    return name


def test_a_sound_file_is_summed_up_and_split(tmp_path, capsys):
    items = [{"prompt": f"Say {n}", "completion": str(n), "score": 1} for n in range(40)]
    assert main([str(write(tmp_path / "q.json", [*items, items[0]]))]) == SOUND
    text = capsys.readouterr().out
    assert text.startswith("q.json: questions and answers, 41 items\n")
    assert "train                 37" in text and "val                    4" in text
    assert (
        "these fields are not used: `score` (41 items, the first: item 0)" in text
        and "repeated items, word for word: 1" in text
    )
    assert "longest (q.json, item 10): 8" in text


def test_defects_are_listed_and_left_out_on_demand(tmp_path, capsys):
    names = [picture(tmp_path, f"{n}.png") for n in range(3)]
    items = [{"question": "Who?", "answer": "I.", "image": name} for name in [*names, "gone.png"]]
    items += [
        {"question": "Who?", "answer": "I.", "image": names[:2]},
        {"question": "Who?", "answer": "I.", "tools": "x"},
    ]
    file = write(tmp_path / "v.json", items)
    assert main([str(file), "--out", str(tmp_path / "out")]) == UNSOUND
    text = capsys.readouterr().out
    for line in (
        "items with several pictures: 1, the first: v.json, item 4: it names 2 pictures",
        "items with `tools` (calls of functions cannot be learned): 1, the first: v.json, item 5",
        "missing pictures: 1, the first: v.json, item 3: gone.png",
    ):
        assert f"defect: {line}" in text
    assert not (tmp_path / "out").exists()
    assert main([str(file), "--on-bad", "skip", "--ignore", "tools", "--out", str(tmp_path / "out")]) == SOUND
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert sum(split["kept"] for split in manifest["splits"].values()) == 4


def test_leaks_between_splits_of_ones_own(tmp_path, capsys):
    write(tmp_path / "train.json", [{"question": f"{n}?", "answer": "x"} for n in range(5)])
    write(tmp_path / "test.json", [{"question": "3?", "answer": "y"}])
    assert main([str(tmp_path)]) == SOUND
    assert "items of test whose question or picture is in train, too: 1" in capsys.readouterr().out
    assert main([str(tmp_path), "--strict"]) == UNSOUND


@pytest.mark.parametrize(
    "items",
    [
        [
            {"instruction": f"{n}?", "input": "i", "output": "o", "system": "s", "history": [["a", "b"]]}
            for n in range(4)
        ],
        [{"image": "a.png", "caption": [f"A dog {n}.", "A pet."]} for n in range(2)]
        + [{"image": "b.png", "caption": "B"}],
        [{"question": f"{n}?", "choices": ["x", "y"], "answer": n % 2, "hint": "h"} for n in range(4)],
        [{"question": f"{n}?", "answer": ["x", "y"], "image": "a.png", "history": [["a", "b"]]} for n in range(4)],
        [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "x"}]} for n in range(4)],
    ],
)
def test_what_is_written_is_read_to_the_same_text(tmp_path, items):
    for name in ("a.png", "b.png"):
        picture(tmp_path, name)
    file = write(tmp_path / "x.json", items)
    assert main([str(file), "--out", str(tmp_path / "out")]) == SOUND
    for split in ("train", "val"):
        direct = read("own", file, split=split, training=True)
        written = read("own", tmp_path / "out" / f"{split}.jsonl", root=tmp_path, split="all", training=True)
        assert direct and [(one.segments, one.image) for one in written] == [
            (one.segments, one.image) for one in direct
        ]


def test_columns_and_what_cannot_be_read(tmp_path, capsys):
    file = write(tmp_path / "d.json", [{"Frage": f"{n}?", "Antwort": "x"} for n in range(3)])
    assert main([str(file)]) == UNUSABLE
    assert "no layout is recognised. The fields are: Frage, Antwort" in capsys.readouterr().err
    assert main([str(file), "--columns", "question=Frage", "answer=Antwort"]) == SOUND
    assert main([str(file), "--columns", "question=Frage", "--columns", "answer=Antwort"]) == SOUND
    assert main([str(file), "--columns", "frage=Frage"]) == UNUSABLE
    assert main([str(tmp_path / "no.json")]) == UNUSABLE
    assert "no.json: no such file or folder" in capsys.readouterr().err


def test_what_a_message_says_to_set_is_an_option_of_the_check(tmp_path, capsys):
    file = write(tmp_path / "d.json", [{"Frage": f"{n}?", "Antwort": "x"} for n in range(3)])
    assert main([str(file)]) == UNUSABLE
    assert "say so: --columns question=NAME --columns answer=NAME" in capsys.readouterr().err
    write(file, [{"prompt": f"{n}?", "chosen": "x", "rejected": "y"} for n in range(3)])
    assert main([str(file)]) == UNUSABLE
    assert (mend := "--columns answer=chosen --ignore rejected") in capsys.readouterr().err
    assert main([str(file), *mend.split()]) == SOUND
    write(file, [{"question": f"{n}?", "answer": "x", "weight": 2} for n in range(3)])
    assert main([str(file)]) == UNSOUND
    assert "set --ignore weight to go without it" in capsys.readouterr().out


def test_what_training_refuses_as_a_whole_is_no_sound_file(tmp_path, capsys):
    assert main([str(write(tmp_path / "d.json", [{"question": "a", "answer": "b"}] * 3))]) == UNSOUND
    text = capsys.readouterr().out
    assert text.count("3 usable items cannot be split into train and val") == 1 and "defect: " in text
    assert main([str(write(tmp_path / "e.json", [{"question": "a", "answer": "b", "image": ["a", "b"]}]))]) == UNSOUND
    assert capsys.readouterr().out.startswith("e.json: questions and answers, 0 items\n")
    assert main([str(write(tmp_path / "f.json", [{"instruction": "a", "output": ""}]))]) == UNSOUND
    assert "defect: no item can be used\n" in capsys.readouterr().out
