"""The page of eval.py: which run is asked and how, files scored without a model, names of the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mmadapter.config import PACKAGE, EvalConf, RunConf, save_config, validate
from mmadapter.errors import InputError
from mmadapter.evaluation import SHIPPED, newest_run, results_name, run_evaluation, task_of_run
from mmadapter.hosts.settings import HostConf
from mmadapter.runs.folder import find_run
from mmadapter.tasks.settings import CocoCaptionTaskSettings, InstructTaskSettings, ScienceqaTaskSettings
from tests.config.composing import eval_conf
from tests.data.small_files import problem, write_scienceqa
from tests.tasks.test_evaluate import Parrot
from tests.tasks.test_predictions import PROBLEM, saved


def test_a_quick_look_at_a_few_questions_does_not_replace_the_runs_scores():
    own = ScienceqaTaskSettings()
    assert results_name(ScienceqaTaskSettings(), own) == "scienceqa"
    assert results_name(ScienceqaTaskSettings(limit=20), own) == "scienceqa-first-20"
    assert results_name(ScienceqaTaskSettings(split="val"), own) == "scienceqa-val"
    looked_at = CocoCaptionTaskSettings(limit=3)
    assert results_name(looked_at, looked_at) == "coco_caption"


def test_other_settings_do_not_replace_the_runs_scores_and_other_places_do():
    own, task = (InstructTaskSettings(path="/old/items.json", root="/old") for _ in range(2))
    task.path, task.root, task.generation.beams = "/new/items.json", "/new", 4
    assert results_name(task, own, ["path", "root"]) == "instruct"
    task.path = "/my/own.json"
    assert results_name(task, own, ["generation.beams", "path"]) == "instruct-beams-4-path-own"
    assert results_name(task, None, ["generation.beams"]) == "instruct-beams-4"


def test_a_run_is_asked_as_its_own_task_says_but_for_what_the_command_line_gives():
    own = ScienceqaTaskSettings(root="/data", prompt_format="QCM-EA", likelihood=False, limit=9)
    own.generation.max_new_tokens = 24
    asked = ScienceqaTaskSettings(prompt_format="QCM-A", limit=None)
    asked.generation.beams = 4
    task = task_of_run(asked, own, ["generation.beams", "limit"])
    assert (task.root, task.prompt_format, task.likelihood, task.limit) == ("/data", "QCM-EA", False, None)
    assert (task.generation.max_new_tokens, task.generation.beams, own.generation.beams) == (24, 4, 1)
    assert task_of_run(asked, None, []) is asked


@pytest.fixture
def runs(tmp_path):
    """make(name, evaluate, seconds, finished=True): a run folder with an adapter, finished so many seconds later."""

    def make(name, evaluate, seconds, finished=True, adapter=True, **tasks):
        folder = tmp_path / "runs" / name
        save_config(RunConf(host=HostConf(path="tiny"), evaluate=evaluate, tasks=tasks), folder)
        if adapter:
            saved_adapter = folder / "adapter" / "adapter.json"
            saved_adapter.parent.mkdir()
            saved_adapter.write_text("{}")
        if finished:
            (folder / "finished.json").write_text("{}")
            os.utime(folder / "finished.json", (1e9 + seconds, 1e9 + seconds))
        return folder

    make.root = tmp_path / "runs"
    return make


def test_without_run_the_newest_finished_run_that_evaluates_the_task_is_taken(runs):
    runs("old", ["scienceqa"], 1)
    newer = runs("newer", ["instruct", "scienceqa"], 2)
    runs("other_task", ["instruct"], 3)
    runs("unfinished", ["scienceqa"], 4, finished=False)
    runs("host_alone", ["scienceqa"], 5, adapter=False)
    (runs("damaged", ["scienceqa"], 6) / "config.yaml").write_text("seed: [")
    assert newest_run("scienceqa", runs.root) == newer
    assert newest_run("coco_caption", runs.root) is None


def test_without_any_run_the_shipped_adapter_answers_and_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    conf = eval_conf("task=scienceqa", "task.limit=8")
    conf.given = ["limit"]
    run_evaluation(conf)
    said = capsys.readouterr().out
    assert "No finished run in runs evaluates scienceqa: this is the adapter that comes with the package" in said
    written = tmp_path / "runs" / "shipped_adapter" / "eval" / "scienceqa-first-8"
    assert json.loads((written / "metrics.json").read_text())["accuracy"]["Avg"] > 60  # of the whole test split: 68
    assert not (SHIPPED / "eval").exists()


def test_what_neither_a_run_nor_the_shipped_adapter_can_do_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no finished run in runs evaluates visual_instruct, nor .*run=RUN_FOLDER"):
        run_evaluation(eval_conf("task=visual_instruct"))
    assert list(tmp_path.iterdir()) == []


def test_the_run_that_is_taken_is_said_and_its_scores_and_cut_prompts_are_printed(runs, tmp_path, monkeypatch, capsys):
    long = "A much longer question, " * 9
    problems = {"5": problem(split="test"), "7": problem(split="test", question=long, choices=["x", "y"], answer=1)}
    root = write_scienceqa(tmp_path / "data", problems)
    folder = runs("mine", ["scienceqa"], 1, scienceqa=ScienceqaTaskSettings(root=str(root), images=False))
    parrot = Parrot({"5": "The answer is A.", "7": "hm"})
    parrot.prepare_images = lambda paths, progress, ranks: None
    parrot.max_tokens = 64 + 150
    monkeypatch.setattr("mmadapter.runs.model.model_of_run", lambda *_: parrot)
    conf = eval_conf("task=scienceqa", f"runs_root={runs.root}", "task.likelihood=false")
    conf.given = ["likelihood"]
    validate(conf)
    metrics = run_evaluation(conf)
    said = capsys.readouterr().out
    assert f"run: {folder}, the newest finished one that evaluates scienceqa" in said
    assert "prompts that were too long and were cut: 1 of 2" in said
    table = " ".join(said.split())
    assert "grade: test split, all 2 questions" in table and "50.00" in table
    assert "[paper]" not in table  # the papers' rows stand beside the official test split only
    assert "Outputs that named no single option, and count as wrong: 1" in said
    written = folder / "eval" / "scienceqa-likelihood-False" / "metrics.json"
    assert f"written: {written}" in said.replace("\n", "") and json.loads(written.read_text()) == metrics


def test_a_run_is_found_by_name_and_by_path(runs):
    folder = runs("first", [], 1)
    assert find_run("first", str(runs.root)) == find_run(str(folder), str(runs.root.parent)) == folder


def test_a_run_that_is_not_there_is_refused_with_those_that_are(runs):
    runs("mine", ["scienceqa"], 1)
    with pytest.raises(InputError, match=r"run=yours: no run folder .*In .*runs: mine\."):
        run_evaluation(eval_conf("task=scienceqa", "run=yours", f"runs_root={runs.root}"))


def test_a_file_is_scored_into_metrics_json(tmp_path, capsys):
    problems = saved(tmp_path, "problems.json", {"3": PROBLEM, "7": PROBLEM, "11": PROBLEM})
    file = saved(tmp_path, "r.json", {"results": {"3": 1, "7": 0}})
    conf = eval_conf("task=scienceqa", f"predictions={file}", f"task.problems={problems}", f"output={tmp_path / 'out'}")
    validate(conf)
    run_evaluation(conf)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["accuracy"]["Avg"] == 50.0 and metrics["accuracy"]["SOC"] is None
    assert metrics["counts"]["NAT"] == 2 and metrics["unanswered"] == 0
    assert metrics["coverage"] == {"scored": 2, "split": 3, "complete": False}
    printed = " ".join(capsys.readouterr().out.split())
    assert "subset: 2 of the 3 questions of test" in printed and "50.00" in printed
    assert "n/a" not in printed and "[paper]" not in printed  # neither empty columns nor the official test's rows
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(row["id"], row["prediction"], row["correct"]) for row in rows] == [("3", 1, True), ("7", 0, False)]


def test_what_contradicts_itself_is_refused_all_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        validate(eval_conf("task=scienceqa", "run=any", f"predictions={tmp_path / 'none.json'}"))
    for text in ("both are given", "none.json: no such file", "give task.problems=problems.json or task.root=FOLDER"):
        assert text in str(error.value)


def test_a_task_without_scores_of_files_says_so():
    with pytest.raises(InputError, match="predictions= cannot be scored for task=instruct"):
        validate(EvalConf(task=InstructTaskSettings(), predictions="x.json"))


def test_scoring_a_file_needs_no_torch():
    code = "import sys, mmadapter.evaluation; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_two_processes_share_the_questions_out_and_write_what_one_writes(tmp_path):
    def predictions(name, *words):
        output = tmp_path / name
        asked = ["task=scienceqa", "task.limit=5", "task.batch_size=2", f"output={output}", f"runs_root={tmp_path}"]
        told = subprocess.run(
            [sys.executable, "eval.py", *asked, *words], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("this run") == 1 and told.stdout.count("written: ") == 1  # one process speaks
        return (output / "predictions.jsonl").read_bytes()

    assert predictions("two", "launch.processes=2") == predictions("one")
