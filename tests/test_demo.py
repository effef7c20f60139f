"""mmadapter demo: the shipped adapter answers about shipped pictures, and the report shows it."""

from __future__ import annotations

import json
import tempfile

import pytest

from mmadapter import demo


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the demo writes."""
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    return tmp_path


def test_the_answers_follow_the_pictures_and_most_are_right(folder, monkeypatch, capsys):
    opened: list[str] = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    demo.main([])
    captions, rows = (
        [json.loads(line) for line in (folder / "eval" / task / "predictions.jsonl").read_text().splitlines()]
        for task in ("coco_caption", "scienceqa")
    )
    right = sum(row["correct"] for row in captions + rows)
    assert len(captions) == 4 and len(rows) == 8 and right >= 9
    assert len({row["output"] for row in captions}) == 4
    assert f"{right} of 12 right" in capsys.readouterr().out
    for question in demo.QUESTIONS.values():  # the same question and options, and another truth for each picture
        same = [row for row in rows if row["question"] == question]
        assert len({str(row["choices"]) for row in same}) == 1 and len({row["answer"] for row in same}) == 4
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/png") >= 12


def test_another_seed_draws_other_pictures_and_nothing_opens_unasked(folder, tmp_path):
    first = demo.draw_pictures(tmp_path / "a", 0)
    assert first == demo.draw_pictures(tmp_path / "again", 0) != demo.draw_pictures(tmp_path / "b", 1)
    assert len(set(first)) == 4
