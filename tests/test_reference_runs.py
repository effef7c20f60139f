"""Whole runs of the real experiments on real files, with the shipped small models (MMADAPTER_REFERENCE_DATA)."""

from __future__ import annotations

import json
import shutil

import pytest

from mmadapter.config import validate
from tests.config.composing import eval_conf, run_conf

pytestmark = pytest.mark.reference_data
SHORT = [
    *("host=tiny", "adapter.prompts.layers=4", "threads=1", "training.tensorboard=false", "optimizer.warmup_epochs=0"),
    *("optimizer.epochs=2", "optimizer.batch_size=16", "optimizer.micro_batch_size=8", "training.save_every_steps=1"),
]


def run_of(tmp_path, *overrides):
    """The run folder of a short run on the shipped models."""
    from mmadapter.training.run import run

    conf = run_conf(*SHORT, *overrides, f"runs_root={tmp_path / 'runs'}")
    validate(conf)
    run(conf)
    (file,) = (tmp_path / "runs").glob("*/config.yaml")
    return file.parent


def scored(run, **settings):
    """What `mmadapter eval task=scienceqa run=...` writes."""
    from mmadapter.evaluation import run_evaluation

    given = [f"task.{name}={value}" for name, value in settings.items()]
    conf = eval_conf("task=scienceqa", f"run={run}", "device=cpu", *given)
    validate(conf)
    conf.given = list(settings)
    return run_evaluation(conf)


@pytest.mark.parametrize("experiment", ["scienceqa", "scienceqa_text"])
def test_scienceqa_from_end_to_end_and_scored_again(experiment, reference_data, tmp_path, capsys):
    limits = ["data.sources.questions.limit=24", "data.validation.questions.limit=8", "tasks.scienceqa.limit=12"]
    where = [f"data.root={reference_data / 'scienceqa'}", "data.sources.questions.pid_splits=pid_splits_runnable.json"]
    vision = ["vision=tiny"] if experiment == "scienceqa" else []
    folder = run_of(tmp_path, f"experiment={experiment}", *vision, *where, *limits)
    written = json.loads((folder / "eval" / "scienceqa" / "metrics.json").read_text())
    assert written["counts"]["Avg"] == 12 and sum(written["counts"][name] for name in ("NAT", "SOC", "LAN")) == 12
    assert written["label"] == "subset: 12 of the 4241 questions of test, not the test score"
    assert written["label"] in capsys.readouterr().out and written["label"] in (folder / "report.html").read_text()
    rows = [json.loads(line) for line in (folder / "eval" / "scienceqa" / "predictions.jsonl").read_text().splitlines()]
    assert any(row["image"] for row in rows) == (experiment == "scienceqa")
    assert any(row["has_image"] for row in rows)

    kept = ("accuracy", "likelihood_accuracy", "counts", "unanswered", "coverage", "prompt_format")
    again = scored(folder)
    assert {name: again[name] for name in kept} == {name: written[name] for name in kept}
    if experiment == "scienceqa":
        unfinished = tmp_path / "unfinished"
        shutil.copytree(folder, unfinished)
        for left in ("adapter", "eval"):
            shutil.rmtree(unfinished / left)
        (unfinished / "finished.json").unlink()
        assert scored(unfinished, limit=5)["counts"]["Avg"] == 5
        assert (unfinished / "eval" / "scienceqa-first-5" / "metrics.json").is_file()


def test_alpaca_from_end_to_end(reference_data, tmp_path):
    file = reference_data / "alpaca" / "alpaca_first2500.json"
    limits = ["data.sources.alpaca.limit=32", "data.validation.alpaca.limit=8", "tasks.instruct.limit=4"]
    short = "tasks.instruct.generation.max_new_tokens=8"
    folder = run_of(tmp_path, "experiment=alpaca", f"data.sources.alpaca.path={file}", *limits, short)
    metrics = json.loads((folder / "eval" / "instruct" / "metrics.json").read_text())
    assert metrics["counts"]["answers"] == 4 and not metrics["complete"]
    rows = [json.loads(line) for line in (folder / "eval" / "instruct" / "predictions.jsonl").read_text().splitlines()]
    items = json.loads(file.read_text())
    assert all(row["reference"] == items[int(row["id"])]["output"] for row in rows)
    assert "Answers to instructions" in (folder / "report.html").read_text()
