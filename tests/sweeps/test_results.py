"""A sweep's table, page and means over seeds, from made runs; and one real sweep from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmadapter.config import RunConf
from mmadapter.runs.sweep import begin_sweep, note_jobs, read_results, read_sweep
from mmadapter.sweeps.job import metric_of
from mmadapter.sweeps.results import write_sweep
from mmadapter.sweeps.settings import SweepConf, direction_of, metric_problems, sweep_name
from mmadapter.tasks import TASKS, task_of
from mmadapter.tasks.settings import CocoCaptionTaskSettings, ScienceqaTaskSettings
from tests.made_runs import made_sweep
from tests.sweeps.sweep_output import GRID, page_of, rows_of
from tests.training.tiny_run import save_inputs

CHECKOUT = Path(__file__).parents[2]


def test_the_table_has_a_row_a_job_and_invents_nothing(tmp_path):
    folder = made_sweep(tmp_path, GRID)
    write_sweep(folder)
    first, second, failed, never = rows_of(folder)
    assert list(first)[:4] == ["job", "optimizer.base_lr", "adapter.prompts.layers", "state"], (
        "only what differs is a column"
    )
    assert (first["value"], second["value"]) == ("40", "60")
    assert first["scienceqa.NAT"] == "39" and "scienceqa.IMG" not in first
    assert first["best_validation_loss"] == "1.6" and first["steps"] == "40" and first["peak_host_bytes"]
    assert failed["state"] == "failed" and failed["reason"] == "Out of memory" and failed["value"] == ""
    assert failed["step"] == "10", "how far it came is known"
    assert never["state"] == "never started" and never["value"] == never["best_validation_loss"] == never["step"] == ""


def test_the_best_job_follows_the_direction(tmp_path):
    folder = made_sweep(tmp_path, GRID)
    best = read_results(folder).best
    assert best is not None and best.number == 1
    begin_sweep(folder, "x", ["optimizer.base_lr"], direction="minimize")
    assert read_results(folder).best.number == 0
    assert (direction_of("validation_loss", None), direction_of("a.Avg", None)) == ("minimize", "maximize")
    assert direction_of("validation_loss", "maximize") == "maximize"


def test_an_unfinished_job_is_never_the_best(tmp_path):
    folder = made_sweep(
        tmp_path,
        {"seed=0": ("finished", 40), "seed=1": ("stopped", 90)},
        metric="validation_loss",
        direction="minimize",
    )
    sweep = read_results(folder)
    assert sweep.best.number == 0 and len(sweep.valued) == 1


def test_means_over_seeds_are_of_finished_jobs_by_setting(tmp_path):
    jobs = {
        "optimizer.base_lr=1e-3 seed=0": ("finished", 40),
        "optimizer.base_lr=1e-3 seed=1": ("finished", 44),
        "optimizer.base_lr=1e-2 seed=0": ("finished", 50),
        "optimizer.base_lr=1e-2 seed=1": ("failed", 0),
    }
    one, other = read_results(made_sweep(tmp_path, jobs)).over_seeds
    assert one.settings == {"optimizer.base_lr": "1e-3"}
    assert one.text == "42 ± 2.8, 40 to 44 (2 of 2 seeds)"
    assert other.text == "50 (1 of 2 seeds)"


def test_columns_are_the_swept_keys_where_the_sweep_names_them(tmp_path):
    equal = {"seed=0 adapter.prompts.layers=1": ("finished", 40), "seed=1 adapter.prompts.layers=1": ("finished", 60)}
    folder = made_sweep(tmp_path, equal)
    begin_sweep(folder, "x", ["adapter.prompts.layers", "+seed"])
    assert read_results(folder).keys == ["adapter.prompts.layers", "seed"]
    write_sweep(folder)
    assert list(rows_of(folder)[0])[:4] == ["job", "adapter.prompts.layers", "seed", "state"]


@pytest.mark.parametrize("swept,columns", [(["seed"], ["seed"]), ([], [])])
def test_what_a_single_job_has_besides_is_no_column(tmp_path, swept, columns):
    folder = made_sweep(tmp_path, {"seed=0 adapter.prompts.layers=1": ("finished", 40)}, swept=swept)
    assert read_results(folder).keys == columns


def test_the_sweeps_file_keeps_what_others_noted(tmp_path):
    begin_sweep(tmp_path, "first", ["a"], metric="m")
    note_jobs(tmp_path, {0: {"overrides": ["a=1"], "run": "runs/x"}})
    note_jobs(tmp_path, {0: {"slurm_job": "12_0"}})
    created = read_sweep(tmp_path)["created"]
    begin_sweep(tmp_path, "again", ["a"], metric="m")
    note_jobs(tmp_path, {0: {"overrides": ["a=1"], "run": "runs/x", "failed": None}})
    assert read_sweep(tmp_path)["jobs"] == [
        {"number": 0, "slurm_job": "12_0", "failed": None, "overrides": ["a=1"], "run": "runs/x"}
    ]
    assert read_sweep(tmp_path)["created"] == created and read_sweep(tmp_path)["command"] == "again"


def test_the_folders_name_depends_on_what_is_swept_and_not_on_where():
    name = sweep_name("scienceqa", ["seed=0,1", "optimizer.base_lr=1e-3"])
    assert name.startswith("scienceqa-")
    same = ["optimizer.base_lr=1e-3", "seed=0,1", "cluster=slurm", "cluster.wait=false", "engine=zero2", "runs_root=x"]
    assert sweep_name("scienceqa", same) == name
    assert sweep_name("scienceqa", ["seed=0,2", "optimizer.base_lr=1e-3"]) != name
    search = sweep_name("a", ["seed=0,1", "sweep.trials=4"])
    assert (
        search == sweep_name("a", ["seed=0,1", "sweep.trials=9", "sweep.parallel=2"]) != sweep_name("a", ["seed=0,1"])
    )
    assert sweep_name("quickstart", ["experiment=alpaca,joint"]).startswith("sweep-")


def problems(metric, tasks):
    scores = {name: task_of(task).scores() for name, task in tasks.items()}
    return list(
        metric_problems(metric, scores, lambda name, score: task_of(tasks[name]).why_no_score(score, f"tasks.{name}"))
    )


def metric(asked=None, *, validated=False, **tasks):
    conf = RunConf(evaluate=list(tasks), tasks=tasks, sweep=SweepConf(metric=asked))
    conf.data.validation = {"held_out": object()} if validated else {}
    return metric_of(conf)


def test_a_metric_that_no_job_will_have_is_refused():
    tasks = {name: TASKS.settings(name)() for name in ("scienceqa", "instruct", "coco_caption")}

    def refused(metric, **evaluated):
        return " ".join(problems(metric, evaluated or tasks))

    for metric in ("scienceqa.Avg", "scienceqa.G1-6", "instruct.exact_match", "coco_caption.BLEU-1", "validation_loss"):
        assert not refused(metric)
    assert "instruct.SCORE" in refused("scienceqa.Avg", instruct=tasks["instruct"])
    assert "Did you mean instruct.exact_match?" in refused("instruct.exactmatch")
    assert "It has: scienceqa.Avg, scienceqa.IMG, scienceqa.NAT" in refused("scienceqa.nonsense")
    assert "tasks.coco_caption.java_metrics=true" in refused("coco_caption.SPICE")
    assert not refused("c.SPICE", c=CocoCaptionTaskSettings(java_metrics=True))


def test_captions_of_a_part_of_the_split_are_no_metric_unless_they_are_to_be_scored():
    part = CocoCaptionTaskSettings(limit=4)
    (problem,) = problems("c.CIDEr", {"c": part})
    assert "tasks.c.allow_subset=true" in problem
    assert metric(c=part) is None
    part.allow_subset = True
    assert not problems("c.CIDEr", {"c": part})
    assert metric(c=part) == "c.CIDEr"


def test_without_a_metric_jobs_are_compared_by_the_first_score_else_by_the_validation_loss():
    tasks = {"captions": CocoCaptionTaskSettings(limit=4), "scienceqa": ScienceqaTaskSettings()}
    assert metric(validated=True, **tasks) == "scienceqa.Avg"
    assert metric("scienceqa.IMG", validated=True, **tasks) == "scienceqa.IMG"
    assert metric(validated=True) == "validation_loss" and metric() is None


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(finished command, sweep's folder, how to give the command again) of a sweep of four jobs; two cannot run."""
    root = tmp_path_factory.mktemp("sweep")
    inputs = save_inputs(root)
    words = [
        f"host.path={inputs / 'host'}",
        f"vision.model={inputs / 'clip'}",
        "vision.layers=[1,2]",
        f"data.root={inputs / 'world'}",
        f"runs_root={root / 'runs'}",
        "adapter.prompts.layers=2",
        "optimizer.epochs=1",
        "optimizer.batch_size=8",
        "optimizer.micro_batch_size=4",
        "training.tensorboard=false",
        "comparison={}",
        "evaluate=[]",
        "optimizer.min_lr=1,0",
        "seed=0,1",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def again():
        command = [sys.executable, str(CHECKOUT / "train.py"), "-m", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=root)

    told = again()
    (folder,) = (root / "runs" / "sweeps").iterdir()
    return told, folder, again


def test_a_failed_job_loses_no_other_and_the_status_tells(real):
    told, folder, _ = real
    assert told.returncode == 2, told.stderr
    assert [row["state"] for row in rows_of(folder)] == ["failed", "failed", "finished", "finished"]
    assert "error: job 0 (optimizer.min_lr=1 seed=0): optimizer.min_lr=1 is above" in told.stderr
    assert "Traceback" not in told.stderr
    assert "over seeds: optimizer.min_lr=0: " in told.stdout and "(2 of 2 seeds)" in told.stdout
    assert read_sweep(folder)["metric"] == "validation_loss" and read_sweep(folder)["direction"] == "minimize"
    assert "optimizer.min_lr" in page_of(folder).text


def test_the_same_command_again_finds_its_sweep_and_trains_nothing(real):
    first, folder, again = real
    before = {row["run"]: (Path(row["run"]) / "metrics.jsonl").stat().st_mtime for row in rows_of(folder)[2:]}
    told = again()
    assert told.returncode == 2 and list(folder.parent.iterdir()) == [folder]
    assert told.stdout.count("is finished; nothing is trained again") == 2
    assert before == {run: (Path(run) / "metrics.jsonl").stat().st_mtime for run in before}
    assert json.loads((folder / "sweep.json").read_text())["jobs"][0]["failed"].startswith("optimizer.min_lr=1")
