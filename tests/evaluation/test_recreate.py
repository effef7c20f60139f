"""How a run is asked: its own task's settings, and the name of the results."""

from mmadapter.config import TaskConf
from mmadapter.evaluation.recreate import task_of_run
from mmadapter.evaluation.run import results_name


def test_a_quick_look_at_a_few_questions_does_not_replace_the_runs_scores():
    own = TaskConf(name="scienceqa", split="test")
    assert results_name(TaskConf(name="scienceqa", split="test"), own) == "scienceqa"
    assert results_name(TaskConf(name="scienceqa", split="test", limit=20), own) == "scienceqa-first-20"
    assert results_name(TaskConf(name="scienceqa", split="val"), own) == "scienceqa-val"
    looked_at = TaskConf(name="coco_caption", limit=3)
    assert results_name(looked_at, looked_at) == "coco_caption"


def test_other_settings_do_not_replace_the_runs_scores_and_other_places_do(tmp_path):
    own, task = (TaskConf(name="instruct", path="/old/items.json", root="/old") for _ in range(2))
    task.path, task.root, task.generation.beams = "/new/items.json", "/new", 4
    assert results_name(task, own, ["path", "root"]) == "instruct"
    task.path = "/my/own.json"
    assert results_name(task, own, ["generation.beams", "path"]) == "instruct-beams-4-path-own"
    assert results_name(task, None, ["generation.beams"]) == "instruct-beams-4"


def test_a_run_is_asked_as_its_own_task_says_but_for_what_the_command_line_gives():
    own = TaskConf(name="scienceqa", root="/data", prompt_format="QCM-EA", likelihood=False, limit=9)
    own.generation.max_new_tokens = 24
    asked = TaskConf(name="scienceqa", prompt_format="QCM-A", limit=None)
    asked.generation.beams = 4
    task = task_of_run(asked, own, ["generation.beams", "limit"])
    assert (task.root, task.prompt_format, task.likelihood, task.limit) == ("/data", "QCM-EA", False, None)
    assert (task.generation.max_new_tokens, task.generation.beams, own.generation.beams) == (24, 4, 1)
    assert task_of_run(asked, None, []) is asked
