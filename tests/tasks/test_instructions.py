"""task=instruct: sampled answers to Alpaca-format items, counted where they equal their reference."""

import json
from dataclasses import replace

import pytest
import torch

from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.reports.report import write_report
from mmadapter.tasks import task_of
from tests.config.composing import eval_conf
from tests.models import model_on
from tests.tasks.asked import StandIn, evaluated, rows_of, show

ITEMS = [
    {"instruction": "repeat a", "input": "", "output": "a  a"},
    {"instruction": "add", "input": "1 and 2", "output": "3"},
    {"instruction": "name a colour", "input": "", "output": "red\nor blue"},
]


class Parrot(StandIn):
    """Says what it is told, and notes how it was asked."""

    def __init__(self, *says):
        super().__init__()
        self.says, self.asked = says, []

    def answer(self, samples, settings, seed=None, features=None, visual=None, at_once=None):
        self.asked.append((settings, seed))
        return [self.says[int(sample.id)] for sample in samples]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ITEMS))
    return path


def task(file, *overrides):
    """conf/task/instruct.yaml on all items of a file."""
    return eval_conf("task=instruct", f"task.path={file}", "task.split=all", "task.seed=5", *overrides).task


def test_answers_that_equal_their_reference_up_to_whitespace_are_counted(file, tmp_path, capsys):
    parrot, wanted = Parrot("a a", "3.", "red or\n\nblue "), task(file)
    metrics = evaluated(parrot, wanted, tmp_path / "out")
    show(wanted, tmp_path / "out")
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["exact_match"] == 66.67 and metrics["counts"] == {"answers": 3, "exact": 2, "empty": 0}
    first, second, _ = rows_of(tmp_path / "out")
    assert {"id", "prompt", "output", "reference"} <= set(first) and first["prompt"].endswith("### Response:")
    assert (second["output"], second["reference"], second["exact"]) == ("3.", "3", False)
    said = capsys.readouterr().out
    assert "add 1 and 2" in said and "3." in said and "2 of 3 answers (66.67 %) equal their reference" in said


def test_questions_have_the_trainings_system_text(file):
    wanted = task_of(task(file))
    assert all(sample.prompt.startswith("Be kind.\n\nBelow is") for sample in wanted.read(None, "alpaca", "Be kind."))
    assert all(sample.prompt.startswith("Below is") for sample in wanted.read(None, "alpaca"))
    assert [one.prompt for one in wanted.read(None, "plain", "Be kind.")][0] == "repeat a"


def test_the_defaults_are_those_of_v1_with_a_seed(file, tmp_path):
    parrot, wanted = Parrot("", "", ""), task(file)
    metrics = evaluated(parrot, wanted, tmp_path)
    ((settings, seed),) = parrot.asked
    assert (settings.temperature, settings.top_p, settings.beams, seed) == (0.1, 0.75, 1, 5)
    assert metrics["counts"]["empty"] == 3 and metrics["generation"]["top_p"] == 0.75 and metrics["seed"] == 5


def test_the_same_seed_gives_the_same_answers(file, tmp_path):
    model = model_on(images=False, max_tokens=128)
    torch.manual_seed(1)
    answers = []
    for seed in (5, 5, 6):
        wanted = task(file, "task.generation.temperature=5", "task.generation.max_new_tokens=8", f"task.seed={seed}")
        evaluated(model, wanted, tmp_path)
        answers.append([row["output"] for row in rows_of(tmp_path)])
    assert answers[0] == answers[1] != answers[2]


def test_beams_reach_the_host(file, tmp_path, monkeypatch):
    model = model_on(images=False, max_tokens=128)
    searched, generate = [], model.host.generate

    def noting(**asked):
        searched.append(asked["generation_config"].num_beams)
        return generate(**asked)

    monkeypatch.setattr(model.host, "generate", noting)
    overrides = ["task.generation.temperature=0", "task.generation.max_new_tokens=6"]
    for beams in (1, 4):
        wanted = task(file, *overrides, f"task.generation.beams={beams}")
        evaluated(model, wanted, tmp_path)
        assert len(rows_of(tmp_path)) == 3
    assert searched == [4], "greedy answers are written without it"


def test_beams_with_a_temperature_are_refused_with_what_to_type():
    with pytest.raises(InputError, match="task.generation.temperature=0"):
        validate(eval_conf("task=instruct", "run=any", "task.generation.beams=4"))


def test_the_report_shows_answers_and_says_what_exact_match_is_worth(file, tmp_path):
    wanted = task(file)
    evaluated(Parrot("<a>", "3", "red"), wanted, tmp_path / "eval" / "instruct")
    page = write_report(tmp_path).read_text()
    assert "Answers to instructions" in page and "&lt;a&gt;" in page and "✓ equal to the reference" in page
    assert "1 of 3 answers (33.33 %)" in page and "no measure of free texts" in page


def test_dialogs_are_asked_for_their_last_answer(tmp_path):
    turns = [("human", "Is it red?"), ("gpt", "Yes."), ("human", "And large?"), ("gpt", "No.")]
    item = {"id": "7", "conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "dialogs.json").write_text(json.dumps([item]))
    asked = eval_conf(
        "task=instruct", "task.reader=sharegpt", f"task.path={tmp_path / 'dialogs.json'}", "task.split=all"
    ).task
    (sample,) = task_of(asked).read()
    with pytest.raises(InputError, match=r"^task\.path=nowhere\.json: no such file"):
        task_of(replace(asked, path="nowhere.json")).read(key="task")
    assert "Yes." in sample.prompt and "And large?" in sample.prompt and sample.meta["output"] == "No."
    asked.template = "alpaca"
    assert task_of(asked).read()[0].prompt != sample.prompt
