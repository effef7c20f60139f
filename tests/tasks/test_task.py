"""Tasks and what asks the register: summary.json, tables, sweeps, eval.py. A task of this file is like any other."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass

import pytest
import torch

from mmadapter.config import EvalConf, RunConf, typed, validate
from mmadapter.data.settings import VisualInstructionsSettings
from mmadapter.errors import InputError
from mmadapter.evaluation import run_evaluation
from mmadapter.reports.report import write_report
from mmadapter.runs.state import RunFolder
from mmadapter.settings import plain
from mmadapter.tasks import TASKS, task_class, task_of
from mmadapter.tasks.settings import CocoCaptionTaskSettings, InstructTaskSettings, ScienceqaTaskSettings, TaskSettings
from mmadapter.tasks.task import Scored, Task
from mmadapter.training.run import run
from tests.config.composing import composed
from tests.training.tiny_run import save_inputs, tiny_overrides

FOUR = ["scienceqa", "coco_caption", "instruct", "visual_instruct"]


@dataclass
class CountSettings(TaskSettings, VisualInstructionsSettings):
    name: str = "count"
    reader: str = "visual_instructions"
    letter: str = plain("e")  # what is counted


class Count(Task[CountSettings]):
    """How often a letter stands in the answers."""

    TITLE = "Letters"
    SCORES = MAIN_SCORES = ("letters",)

    def score(self, samples, answers):
        rows = [
            {"id": sample.id, "output": text, "letters": text.count(self.settings.letter)}
            for sample, text in zip(samples, answers.texts, strict=True)
        ]
        return Scored({"letters": float(sum(row["letters"] for row in rows))}, rows)


@pytest.fixture(scope="module")
def toy():
    TASKS.add("count", CountSettings, Count)
    yield
    TASKS.remove("count")


@pytest.fixture(scope="module")
def done(toy, tmp_path_factory):
    """(run folder, its summary, its settings) of a short run that is evaluated in the four tasks and in the toy one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tasks")
    inputs = save_inputs(folder / "inputs")
    items = [
        {"instruction": "what colour", "image": "a.png", "attribute": "color", "answer": "red", "wrong": ["blue"],
         "unasked": ["left"]}
    ]  # fmt: skip
    picture = next((inputs / "world").rglob("*.png")).read_bytes()
    (inputs / "a.png").write_bytes(picture)
    (inputs / "visual.json").write_text(json.dumps(items * 3))
    overrides = [
        *tiny_overrides(inputs, folder / "runs"),
        "+task@tasks.visual_instruct=visual_instruct",
        f"tasks.visual_instruct.path={inputs / 'visual.json'}",
        f"tasks.count={{name: count, path: '{inputs / 'visual.json'}', generation: {{max_new_tokens: 4}}}}",
        "tasks.coco_caption.limit=null",
        "tasks.instruct.generation.max_new_tokens=4",
        "tasks.visual_instruct.generation.max_new_tokens=4",
        "tasks.scienceqa.likelihood=true",
        "optimizer.epochs=0.5",
        f"evaluate=[{','.join(FOUR)},count]",
        "comparison={}",
        "run=all",
    ]
    conf = typed(composed("train", *overrides), RunConf)
    validate(conf)
    summary = run(conf)
    return folder / "runs" / "all", summary, conf


def metrics_of(folder, name):
    return json.loads((folder / "eval" / name / "metrics.json").read_text())


SUMMARISED = {
    "scienceqa": {"accuracy", "likelihood_accuracy", "counts", "unanswered"},
    "coco_caption": {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "exact_match"},
    "instruct": {"exact_match", "F1", "ROUGE-L", "BLEU", "counts"},
    "visual_instruct": {"followed", "named", "counts"},
    "count": {"letters"},
}


@pytest.mark.parametrize("name", SUMMARISED)
def test_the_summary_holds_the_scores_of_every_task_with_the_numbers_of_its_metrics(name, done):
    folder, summary, _ = done
    metrics = metrics_of(folder, name)
    for written in (summary, *(json.loads((folder / f"{file}.json").read_text()) for file in ("summary", "finished"))):
        assert written["evaluation"][name] == {key: metrics[key] for key in SUMMARISED[name]}
    assert metrics["task"] == name and metrics["versions"]["torch"]


def test_a_run_of_captions_has_cider_and_bleu_in_its_summary(done):
    folder, summary, _ = done
    scores, metrics = summary["evaluation"]["coco_caption"], metrics_of(folder, "coco_caption")
    assert scores["CIDEr"] == metrics["CIDEr"] >= 0 and scores["BLEU-4"] == metrics["BLEU-4"] >= 0
    assert metrics["coverage"]["complete"]


def test_what_lists_runs_finds_every_tasks_scores(done):
    folder, _, conf = done
    found = RunFolder(folder).scores(main=True)
    assert {"scienceqa.Avg", "coco_caption.CIDEr", "coco_caption.BLEU-4", "instruct.exact_match"} <= found.keys()
    assert {"visual_instruct.followed", "visual_instruct.named", "count.letters"} <= found.keys()
    assert "scienceqa.NAT" not in found and "coco_caption.BLEU-1" in RunFolder(folder).scores(main=False)
    assert found["count.letters"] == metrics_of(folder, "count")["letters"]
    conf.sweep.metric = "count.letters"
    validate(conf)
    conf.sweep.metric = "count.words"
    with pytest.raises(InputError, match="count has no such score. .*It has: count.letters"):
        validate(conf)


def test_a_task_of_ones_own_is_evaluated_shown_and_reported(done, capsys):
    folder, _, conf = done
    content = {"name": "count", "path": conf.tasks["count"].path, "letter": "r"}
    asked = typed_eval({"task": content, "runs_root": str(folder.parent), "given": ["letter"]})
    metrics = run_evaluation(asked)
    said = capsys.readouterr().out
    assert f"run: {folder}" in said and "Letters" in said and f"{metrics['letters']:.2f}" in said
    assert metrics_of(folder, "count-letter-r") == metrics
    page = write_report(folder).read_text()
    assert "Letters" in page and "Captions of test pictures" in page and "Open instructions about pictures" in page


def typed_eval(content):
    from mmadapter.settings import typed

    return typed(EvalConf, content)


def test_a_key_that_a_task_does_not_have_is_refused_by_name():
    with pytest.raises(InputError, match=r"no setting 'task\.java_metrics'"):
        typed_eval({"task": {"name": "scienceqa", "java_metrics": True}})
    with pytest.raises(InputError, match=r"no setting 'task\.fallbak'. Did you mean task\.fallback\?"):
        typed_eval({"task": {"name": "scienceqa", "fallbak": "none"}})
    with pytest.raises(
        InputError, match=r"task\.name='scienceq'. Did you mean scienceqa\? Registered tasks: scienceqa"
    ):
        typed_eval({"task": {"name": "scienceq"}})
    with pytest.raises(InputError, match=r"task\.weight is for data\.sources"):
        validate(EvalConf(task=InstructTaskSettings(weight=0.5)))


def test_the_scores_that_settings_give_are_known_before_the_run():
    assert task_of(ScienceqaTaskSettings()).scores()[:3] == ["Avg", "IMG", "NAT"]
    assert task_of(CocoCaptionTaskSettings()).scores()[:3] == ["CIDEr", "BLEU-4", "BLEU-1"]
    assert (
        "SPICE"
        in task_of(CocoCaptionTaskSettings(java_metrics=True)).scores()
        != task_of(CocoCaptionTaskSettings()).scores()
    )
    part = CocoCaptionTaskSettings(limit=4)
    assert task_of(part).scores() == [] and "tasks.c.allow_subset=true" in task_of(part).why_no_score(
        "CIDEr", "tasks.c"
    )
    assert task_of(CocoCaptionTaskSettings(limit=4, allow_subset=True)).scores()


def test_a_score_that_is_no_number_is_left_out():
    def scores(metrics):
        return task_class(metrics, "").values(metrics)

    assert scores({"task": "scienceqa", "accuracy": {"Avg": 50.0, "IMG": None}}) == {"Avg": 50.0}
    assert scores({"task": "coco_caption", "CIDEr": float("nan"), "BLEU-1": 0.5}) == {"BLEU-1": 0.5}
    assert task_class({"task": "vqa", "x": 1.0}, "") is None


def test_every_setting_of_a_task_is_commented_where_it_is_declared():
    for schema in (TaskSettings, *map(TASKS.settings, FOUR)):
        for owner in schema.__mro__[:-1]:
            inherited = {name for above in owner.__mro__[1:-1] for name in above.__annotations__}
            declared = re.findall(r"((?:    #.+\n)?)    (\w+): (?!ClassVar)(.+)\n", inspect.getsource(owner))
            bare = [
                name
                for above, name, rest in declared
                if name not in inherited and not above and "  # " not in rest and "default_factory" not in rest
            ]
            assert declared and not bare, f"{owner.__name__}: {bare}"
