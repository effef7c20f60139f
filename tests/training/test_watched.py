"""While a run trains: fixed questions are answered and the report is written, and nothing of the training changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.data.samples import INSTRUCTION, Sample, Segment
from mmadapter.runs.journal import read_metrics
from mmadapter.training import run as page
from mmadapter.training.watched import answer_text, watched_samples
from tests.training.tiny_run import save_inputs, tiny_conf


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def trained(inputs, runs, *overrides):
    """The folder of a short run with its own tasks, without comparisons."""
    conf = tiny_conf(inputs, runs, "optimizer.epochs=1", "run=one", *overrides)
    conf.comparison = {}
    page.run(conf)
    return runs / "one"


def sample(id: str, image: str | None) -> Sample:
    return Sample(id, "task", (Segment("What?", INSTRUCTION),), None if image is None else Path(image), id)


def test_the_same_questions_are_answered_before_the_first_step_and_at_each_validation(inputs, tmp_path, capsys):
    folder = trained(inputs, tmp_path, "training.validate_every_steps=4")
    records = read_metrics(folder / "metrics.jsonl", "answers")
    validated = [line["step"] for line in read_metrics(folder / "metrics.jsonl", "validation")]
    assert [record["step"] for record in records] == [0, *validated] and len(validated) > 1
    asked = [[(one["task"], one["sample"], one["question"]) for one in record["samples"]] for record in records]
    assert len(asked[0]) == 4 and all(one == asked[0] for one in asked)
    first = records[0]["samples"][0]
    assert first["image"] is not None and Path(first["image"]).is_file()
    assert first["references"] and first["right"] is False  # random models
    said = capsys.readouterr().out
    assert all(answer_text(record["step"], record["samples"][0]).splitlines()[0] in said for record in records)


def test_a_report_that_cannot_be_written_stops_no_training_and_watching_changes_no_bit(
    inputs, tmp_path, capsys, monkeypatch
):
    written = []

    def write(folder):
        written.append(len(read_metrics(folder / "metrics.jsonl", "validation")))
        if len(written) < 3:
            raise RuntimeError("no chart")
        return folder / "report.html"

    monkeypatch.setattr(page, "write_report", write)
    watched = trained(inputs, tmp_path / "watched", "training.validate_every_steps=4")
    assert written[:3] == [0, 1, 2]  # before the first step, and after each validation
    assert capsys.readouterr().out.count("cannot be written while the run trains: RuntimeError: no chart") == 1
    monkeypatch.undo()
    alone = trained(inputs, tmp_path / "alone", "training.validate_every_steps=4", "training.watch_samples=0")
    assert read_metrics(alone / "metrics.jsonl", "answers") == []
    one, other = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (watched, alone))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_pictures_come_first_and_the_tasks_take_turns():
    questions = {
        "a": [sample("a1", None), sample("a2", "2.png"), sample("a3", "3.png"), sample("a4", "4.png")],
        "b": [sample("b1", None), sample("b2", "b.png")],
    }
    chosen = watched_samples(questions, 4)
    assert [name for name, _ in chosen] == ["a", "b", "a", "a"]
    assert all(one.image is not None for _, one in chosen) and chosen == watched_samples(questions, 4)
    assert [name for name, _ in watched_samples({"b": questions["b"]}, 4)] == ["b", "b"]
    assert watched_samples(questions, 0) == watched_samples({}, 4) == []
