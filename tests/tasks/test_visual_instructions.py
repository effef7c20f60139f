"""task=visual_instruct: the rule that judges answers, and irrelevant pictures attached to instructions."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmadapter.config import validate
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.reports.report import write_report
from mmadapter.tasks import task_of
from mmadapter.tasks.task import evaluate
from mmadapter.tasks.visual_instruct import outcome
from tests.config.composing import eval_conf, run_conf
from tests.models import model_on
from tests.tasks.asked import evaluated, rows_of, show
from tests.tasks.test_instructions import Parrot

ITEM = {
    "instruction": "Tell me the color.", "image": "a.png", "attribute": "color", "answer": "red",
    "wrong": ["blue", "green"], "unasked": ["large", "small", "star", "left"],
}  # fmt: skip


@pytest.mark.parametrize(
    "said,judged",
    [
        ("It is red.", "followed"),
        ("Red", "followed"),
        ("A red star.", "followed"),
        ("A large red star on the left.", "described"),
        ("It is blue.", "wrong"),
        ("It is red or blue.", "wrong"),
        ("It is covered.", "silent"),
        ("", "silent"),
    ],
)
def test_an_answer_is_judged_by_its_words(said, judged):
    assert outcome(said, ITEM) == judged


@pytest.fixture
def file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = tmp_path / "visual.json"
    path.write_text(json.dumps([ITEM, ITEM, {**ITEM, "attribute": "size", "answer": "large", "wrong": ["small"]}]))
    return path


def test_shares_are_of_all_answers_and_by_attribute(file, tmp_path, capsys):
    wanted = eval_conf("task=visual_instruct", f"task.path={file}").task
    parrot = Parrot("It is red.", "A large red star.", "small")
    metrics = evaluated(parrot, wanted, tmp_path / "eval" / "visual_instruct")
    show(wanted, tmp_path / "eval" / "visual_instruct")
    assert metrics["followed"] == 33.33 and metrics["named"] == 66.67
    assert metrics["by_attribute"] == {
        "color": {"followed": 50.0, "named": 100.0}, "size": {"followed": 0.0, "named": 0.0}
    }  # fmt: skip
    assert metrics["counts"] == {"answers": 3, "followed": 1, "described": 1, "wrong": 1}
    assert [row["outcome"] for row in rows_of(tmp_path / "eval" / "visual_instruct")] == [
        "followed",
        "described",
        "wrong",
    ]
    assert (
        "33.33 % of 3 instructions were followed; 66.67 % of the answers name the right word" in capsys.readouterr().out
    )
    assert write_report(tmp_path).is_file()


def test_attached_pictures_reach_the_model(file, tmp_path):
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "a b c", "input": "", "output": "red"}] * 1))
    given = ["task=instruct", f"task.path={tmp_path / 'alpaca.json'}", "task.split=all"]
    greedy = ["task.generation.temperature=0", "task.generation.max_new_tokens=12"]
    model, outputs = model_on(gates=2.0, max_tokens=128), []
    for attached in ([], ["task.images=true", f"task.attach_images={tmp_path}"]):
        task = eval_conf(*given, *greedy, *attached).task
        samples = task_of(task).read()
        model.prepare_images([sample.image for sample in samples if sample.image is not None])
        evaluate(model, task_of(task), samples, tmp_path / "out", Ranks())
        outputs.append(rows_of(tmp_path / "out")[0]["output"])
    assert outputs[0] != outputs[1]


def test_pictures_for_a_task_without_images_are_refused(file, tmp_path):
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}]))
    task = eval_conf("task=instruct", f"task.path={tmp_path / 'alpaca.json'}", f"task.attach_images={tmp_path}").task
    with pytest.raises(InputError, match="images=true"):
        task_of(task).read()
    conf = run_conf("evaluate=[instruct]", f"tasks.instruct.attach_images={tmp_path}")
    with pytest.raises(InputError, match="tasks.instruct.images=true"):
        validate(conf)
