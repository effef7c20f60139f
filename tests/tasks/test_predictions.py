"""Predictions files of every layout, and the errors for what cannot be scored."""

import json

import pytest

from mmadapter import files
from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.tasks.scienceqa_files import read_predictions
from mmadapter.tasks.scienceqa_scores import question_of_problem, read_questions

PROBLEM = {
    "question": "Which one?", "choices": ["red", "blue"], "answer": 1, "hint": "", "image": None,
    "grade": "grade2", "subject": "natural science", "split": "test", "topic": "colours",
}  # fmt: skip
QUESTIONS = {id: question_of_problem(id, PROBLEM) for id in ("3", "7", "11")}


def saved(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(items):
    return "".join(json.dumps(item) + "\n" for item in items)


def test_a_results_map_is_scored_as_it_stands(tmp_path):
    content = {"acc": 1.0, "results": {"3": 1, "7": -1, "11": None}, "outputs": {"3": "The answer is A."}}
    read = read_predictions(saved(tmp_path, "r.json", content), QUESTIONS)
    assert read.indices == {"3": 1, "7": None, "11": None}
    assert read.outputs == {"3": "The answer is A."}
    assert "acc" in read.remarks[0]


def test_the_texts_are_parsed_where_asked(tmp_path):
    content = {"results": {"3": 1}, "outputs": {"3": "The answer is A.", "7": "no idea"}}
    read = read_predictions(saved(tmp_path, "r.json", content), QUESTIONS, predictions_from="outputs")
    assert read.indices == {"3": 0, "7": None}


def test_llava_answers_are_parsed(tmp_path):
    items = [{"question_id": "3", "prompt": "?", "text": "B"}, {"question_id": 7, "text": "A. red", "model_id": "m"}]
    assert read_predictions(saved(tmp_path, "a.jsonl", lines(items)), QUESTIONS).indices == {"3": 1, "7": 0}


def test_llavas_scored_outputs_are_parsed(tmp_path):
    content = {"correct": [{"question_id": "3", "pred": "B"}], "incorrect": [{"question_id": "7", "pred": "hm"}]}
    assert read_predictions(saved(tmp_path, "o.json", content), QUESTIONS).indices == {"3": 1, "7": None}


def test_our_own_lines_are_read_back(tmp_path):
    items = [{"id": "3", "prediction": 1, "output": "A"}, {"id": "7", "prediction": None, "output": ""}]
    path = saved(tmp_path, "predictions.jsonl", lines(items))
    assert read_predictions(path, QUESTIONS).indices == {"3": 1, "7": None}
    assert read_predictions(path, QUESTIONS, predictions_from="outputs").indices == {"3": 0, "7": None}


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


def test_the_split_is_what_pid_splits_lists(tmp_path):
    problems = saved(tmp_path, "problems.json", {"3": PROBLEM, "7": PROBLEM, "8": {**PROBLEM, "split": "val"}})
    assert read_questions("test", problems=problems)[1] == 2
    saved(tmp_path, "pid_splits.json", {"test": ["3", "7", "11"], "minitest": ["7"]})
    questions, size = read_questions("test", problems=problems)
    assert list(questions) == ["3", "7"] and size == 3
    assert list(read_questions("minitest", root=tmp_path)[0]) == ["7"]
    with pytest.raises(InputError, match="it has: test, minitest"):
        read_questions("dev", problems=problems)


def test_splits_of_ones_own_are_known_as_a_subset_of_the_whole_split(tmp_path):
    problems = saved(tmp_path, "problems.json", {"3": PROBLEM, "7": PROBLEM, "11": PROBLEM})
    own = saved(tmp_path, "few.json", {"test": ["3"]})
    assert read_questions("test", problems=problems, pid_splits=own)[1] == 1
    saved(tmp_path, "pid_splits.json", {"test": ["3", "7", "11"]})
    questions, size = read_questions("test", problems=problems, pid_splits="few.json")
    assert list(questions) == ["3"] and size == 3


@pytest.mark.parametrize(("field", "value"), [("answer", 2), ("answer", "B"), ("subject", "art"), ("grade", "grade13")])
def test_a_bad_question_is_refused_by_file_id_and_field(tmp_path, field, value):
    problems = saved(tmp_path, "problems.json", {"3": {**PROBLEM, field: value}})
    with pytest.raises(InputError, match=rf"problems\.json: .*question 3: `{field}`"):
        read_questions("test", problems=problems)


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
