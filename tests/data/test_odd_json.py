"""JSON that Python reads in its own way: half characters, huge numbers, deep nesting; names that no file can have."""

from __future__ import annotations

import pytest

from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.errors import InputError
from tests.data.reading import read
from tests.hostile.layouts import put, write_karpathy

LINES = '{"question": "a", "answer": "b"}\n'


def test_half_of_a_character_is_replaced_and_said_with_its_place(tmp_path, caplog):
    file = put(tmp_path / "a.jsonl", LINES + '{"question": "cut \\ud83d", "answer": "whole \\ud83d\\ude00"}\n' + LINES)
    assert read_json_lines(file)[1] == {"question": "cut \ufffd", "answer": "whole \U0001f600"}
    assert "1 texts hold half of a character" in caplog.text and "[1].question" in caplog.text
    samples = read("own", file, training=True, split="all")
    assert [segment.text for segment in samples[1].segments if segment.kind == "instruction"] == ["cut \ufffd"]


@pytest.mark.parametrize(
    "content, told",
    [
        (f'[{{"question": "a", "answer": {"7" * 5000}}}]', "a.json, byte 29: a number has more than 4,300 digits"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
)
def test_numbers_and_nesting_are_refused_with_their_place(tmp_path, content, told):
    with pytest.raises(InputError, match=told):
        read_json(put(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    "line, told", [(f'{{"a": {"7" * 5000}}}', "more than 4,300 digits"), ("[" * 100_000, "deeply")]
)
def test_in_lines_too(tmp_path, line, told):
    with pytest.raises(InputError, match=rf"a.jsonl, line 2.*{told}"):
        read_json_lines(put(tmp_path / "a.jsonl", f"{LINES}{line}\n"))


def test_a_number_that_is_too_large_to_be_read_is_no_answer(tmp_path):
    file = put(tmp_path / "a.json", '[{"question": "a", "answer": 1e999}, {"question": "b", "answer": "c"}]')
    with pytest.raises(InputError, match="item 0: `answer` is a number that is too large"):
        read("own", file, training=True, split="all")


@pytest.mark.parametrize("name", ["a" * 5000, "a\0.png"])
def test_a_picture_whose_name_no_file_can_have_is_missing(tmp_path, name):
    items = [{"question": "a", "answer": "b", "image": name}] * 2
    with pytest.raises(InputError, match="pictures are missing") as refused:
        read("own", put(tmp_path / "a.json", items), training=True, split="all")
    assert len(str(refused.value)) < 1500


def test_a_picture_of_an_unknown_split_is_not_lost_without_a_word(tmp_path):
    write_karpathy(tmp_path)
    file = tmp_path / "dataset_coco.json"
    file.write_text(file.read_text().replace('"restval"', '"rest val"'))
    with pytest.raises(
        InputError, match=r"images\[1\]: `split` is str 'rest val'; allowed are train, restval, val, test"
    ):
        read("coco_captions", tmp_path, training=True, split="val")
