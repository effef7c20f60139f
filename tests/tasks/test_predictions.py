"""Predictions files of every layout, and the errors for what cannot be scored."""

import json

import pytest

from mmadapter import files
from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.tasks import task_of
from mmadapter.tasks.scienceqa_scores import read_predictions
from mmadapter.tasks.settings import ScienceqaTaskSettings

PROBLEM = {
    "question": "Which one?", "choices": ["red", "blue"], "answer": 1, "hint": "", "image": None,
    "grade": "grade2", "subject": "natural science", "split": "test", "topic": "colours",
}  # fmt: skip
QUESTIONS = dict.fromkeys(("3", "7", "11"), {**PROBLEM, "has_hint": False, "has_image": False})


def saved(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(items):
    return "".join(json.dumps(item) + "\n" for item in items)


def test_a_results_map_is_scored_as_it_stands(tmp_path):
    content = {"acc": 1.0, "results": {"3": 1, "7": -1, "11": None}, "outputs": {"3": "The answer is A."}}
    indices, outputs, remarks = read_predictions(saved(tmp_path, "r.json", content), QUESTIONS)
    assert indices == {"3": 1, "7": None, "11": None}
    assert outputs == {"3": "The answer is A."}
    assert "acc" in remarks[0]


def indices_of(file, predictions_from="results"):
    return read_predictions(file, QUESTIONS, predictions_from)[0]


def test_the_texts_are_parsed_where_asked(tmp_path):
    content = {"results": {"3": 1}, "outputs": {"3": "The answer is A.", "7": "no idea"}}
    assert indices_of(saved(tmp_path, "r.json", content), "outputs") == {"3": 0, "7": None}


def test_texts_alone_are_parsed_and_a_remark_says_so(tmp_path):
    indices, _, remarks = read_predictions(saved(tmp_path, "r.json", {"outputs": {"3": "(B)"}}), QUESTIONS)
    assert indices == {"3": 1} and "no indices" in remarks[0]


def test_llava_answers_are_parsed(tmp_path):
    items = [{"question_id": "3", "prompt": "?", "text": "B"}, {"question_id": 7, "text": "A. red", "model_id": "m"}]
    assert indices_of(saved(tmp_path, "a.jsonl", lines(items))) == {"3": 1, "7": 0}


def test_llavas_scored_outputs_are_parsed(tmp_path):
    content = {"correct": [{"question_id": "3", "pred": "B"}], "incorrect": [{"question_id": "7"}]}
    assert indices_of(saved(tmp_path, "o.json", content)) == {"3": 1, "7": None}


def test_our_own_lines_are_read_back(tmp_path):
    items = [{"id": "3", "prediction": 1, "output": "A"}, {"id": "7", "prediction": None, "output": ""}]
    path = saved(tmp_path, "predictions.jsonl", lines(items))
    assert indices_of(path) == {"3": 1, "7": None}
    assert indices_of(path, "outputs") == {"3": 0, "7": None}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", {"results": {"3": 2}}, r"r\.json, id 3: the prediction is 2"),
        ("r.json", {"results": {"3": True}}, "id 3"),
        ("r.json", {"results": {"3": "B"}}, "id 3"),
        ("r.json", {"results": {"99": 0}}, "not among the 3 questions of this split .*: 99"),
        ("r.json", '{"results": {"3": 0, "3": 1}}', "'3' stands twice"),
        ("r.json", '{"results": {"3": 0, "7', r"r\.json: the JSON ends too early at byte"),
        ("r.json", {"answers": {}}, "recognised layouts"),
        ("r.json", [1, 2], "recognised layouts"),
        ("r.json", {"results": {}}, "holds no results"),
        ("r.json", {"outputs": {"3": 1}}, "id 3: the output is int '1'"),
        ("r.json", {"outputs": ["A"]}, "recognised layouts"),
        ("a.jsonl", lines([{"question_id": "3", "text": "A"}] * 2), "item 2: the id '3' comes twice"),
        ("a.jsonl", lines([{"qid": "3"}]), "recognised layouts"),
        ("a.jsonl", '{"question_id": "3", "text": "A"}\n{"question', "line 2"),
        ("a.jsonl", "", "empty"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_file_and_id(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_predictions(saved(tmp_path, name, content), QUESTIONS)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_predictions(tmp_path / "none.json", QUESTIONS)


def asked(folder, **settings):
    """(the ids that a file of predictions is scored against, how many questions the whole split has)."""
    task = task_of(ScienceqaTaskSettings(**{"problems": str(folder / "problems.json"), **settings}))
    return list(task.questions()), task.size_of_split()


def test_the_split_is_what_pid_splits_lists(tmp_path):
    saved(tmp_path, "problems.json", {"3": PROBLEM, "7": PROBLEM, "8": {**PROBLEM, "split": "val"}})
    assert asked(tmp_path) == (["3", "7"], None)
    saved(tmp_path, "pid_splits.json", {"test": ["3", "7", "11"], "minitest": ["7"]})
    assert asked(tmp_path) == (["3", "7"], 3)
    assert asked(tmp_path, root=str(tmp_path), split="minitest") == (["7"], 1)
    with pytest.raises(InputError, match="it has: test, minitest"):
        asked(tmp_path, split="dev")


def test_splits_of_ones_own_are_known_as_a_subset_of_the_whole_split(tmp_path):
    saved(tmp_path, "problems.json", {"3": PROBLEM, "7": PROBLEM, "11": PROBLEM})
    own = saved(tmp_path, "few.json", {"test": ["3"]})
    assert asked(tmp_path, pid_splits=str(own)) == (["3"], 1)
    saved(tmp_path, "pid_splits.json", {"test": ["3", "7", "11"]})
    assert asked(tmp_path, pid_splits="few.json") == (["3"], 3)


def test_the_split_is_what_pid_splits_lists_below_the_home_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path, "problems.json", {"3": PROBLEM})
    saved(tmp_path, "pid_splits.json", {"test": ["3", "7"]})
    assert asked(tmp_path, root="~") == asked(tmp_path, problems="~/problems.json") == (["3"], 2)


@pytest.mark.parametrize(("field", "value"), [("answer", 2), ("answer", "B"), ("subject", "art"), ("grade", "grade13")])
def test_a_bad_question_is_refused_by_file_id_and_field(tmp_path, field, value):
    saved(tmp_path, "problems.json", {"3": {**PROBLEM, field: value}})
    with pytest.raises(InputError, match=rf"problems\.json: .*question 3: `{field}`"):
        asked(tmp_path)


def test_an_interrupted_write_leaves_the_previous_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"accuracy": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write_json(path, {"accuracy": 2})
    assert json.loads(path.read_text()) == {"accuracy": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
