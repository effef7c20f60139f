"""metrics.jsonl: one whole line a record, cut back to the checkpoint, tolerant of a torn end."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from mmadapter.runs.journal import Journal, read_metrics
from mmadapter.training.settings import TrainingConf


def write_steps(journal, *steps):
    for step in steps:
        journal.write("train", {"step": step, "loss": 1.0 / step})


def steps_in(path, kind="train"):
    return [record["step"] for record in read_metrics(path, kind)]


def test_lines_are_on_the_disk_at_once(tmp_path):
    journal = Journal(tmp_path)
    write_steps(journal, 1, 2)
    assert steps_in(journal.path) == [1, 2]
    assert json.loads(journal.path.read_text().splitlines()[0]) == {"kind": "train", "step": 1, "loss": 1.0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room (Linux)")
def test_a_full_disk_is_told_once_when_writing_not_again_when_closing(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        write_steps(journal, 1)
    journal.close()


def test_cutting_back_removes_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    write_steps(journal, 1, 2)
    position = journal.position()
    write_steps(journal, 3, 4)
    journal.close()
    with open(journal.path, "ab") as file:
        file.write(b'{"kind": "train", "st')  # killed in the middle of a line
    again = Journal(tmp_path)
    again.cut_back(position, step=2)
    write_steps(again, 3)
    assert steps_in(again.path) == [1, 2, 3]
    assert again.path.read_bytes().endswith(b"\n")


def test_a_fresh_start_empties_what_a_killed_attempt_left(tmp_path):
    journal = Journal(tmp_path)
    write_steps(journal, 1)
    journal.cut_back(0, step=0)
    assert journal.path.read_bytes() == b""


def test_a_file_that_is_shorter_than_it_was_keeps_its_whole_lines(tmp_path):
    journal = Journal(tmp_path)
    write_steps(journal, 1, 2, 3)
    content = journal.path.read_bytes()
    journal.close()
    journal.path.write_bytes(content[:-7])
    again = Journal(tmp_path)
    again.cut_back(10_000, step=3)
    write_steps(again, 4)
    assert steps_in(again.path) == [1, 2, 4]


def test_a_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "step": 1}\n{"kind": "tra')
    assert steps_in(path) == [1]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    journal = Journal(tmp_path)
    journal.write("train", {"step": 1, "loss": math.nan, "gates": [[math.inf]], "loss_by_source": {"a": -math.inf}})
    assert json.loads(journal.path.read_text(), parse_constant=None)["loss"] is None
    assert "NaN" not in journal.path.read_text() and "Infinity" not in journal.path.read_text()


def test_tensorboard_gets_the_numbers_and_forgets_killed_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (3, 4)):
        journal = Journal(tmp_path, boards=["tensorboard"])
        journal.open_boards(steps[0] - 1)
        for step in steps:
            journal.write("train", {"step": step, "loss": float(step), "gates": [[0.5, -0.5]], "loss_by_source": {}})
        journal.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert board.Scalars("gates/layer_0")[0].value == 0.5


def answers(folder):
    Image.new("RGB", (9, 7), "red").save(folder / "red.png")
    one = {"sample": "4", "task": "scienceqa", "image": str(folder / "red.png"), "question": "What <b>?", "answer": "a"}
    gone = {"sample": "5", "task": "scienceqa", "image": str(folder / "gone.png"), "question": "And?", "answer": "b"}
    return [{**one, "references": ["red"], "right": False}, {**gone, "references": [], "right": None}]


def test_tensorboard_shows_samples_with_their_pictures_and_answers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, boards=["tensorboard"])
    journal.open_boards(0)
    journal.write("answers", {"step": 3, "samples": answers(tmp_path)})
    journal.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(one.step, one.width, one.height) for one in board.Images("answers/1")] == [(3, 9, 7)]
    assert "answers/2" not in board.Tags()["images"], "its picture is gone, its texts are not"
    texts = [
        board.Tensors(f"answers/{number}/text_summary")[0].tensor_proto.string_val[0].decode() for number in (1, 2)
    ]
    assert texts == ["    question: What <b>?\n    answer: a\n    true: red\n", "    question: And?\n    answer: b\n"]


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Modules in place of wandb and mlflow, which note what they are told."""
    told = []
    wandb = ModuleType("wandb")
    wandb.init = lambda **settings: told.append(("init", settings["name"], settings["resume"]))
    wandb.log = lambda values, step: told.append(("log", values, step))
    wandb.Image = lambda picture, caption: (picture.size, caption)
    wandb.Table = lambda columns, data: data
    wandb.finish = lambda: told.append("finish")

    class Client:
        def __init__(self, place):
            told.append(place)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name, files):
            told.append(files)
            return "1"

        def search_runs(self, numbers, wanted):
            return []

        def create_run(self, number, run_name, tags):
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run of {tags['mmadapter_run']}"))

        def __getattr__(self, name):
            return lambda *values, **named: told.append((name, *values, *named.values()))

    mlflow = ModuleType("mlflow")
    mlflow.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return told


def write_all(folder, board):
    journal = Journal(folder, boards=[board], name="mine")
    journal.open_boards(0)
    journal.write("train", {"step": 2, "loss": 0.5, "loss_by_source": {}, "memory": {"host_bytes": 7}})
    journal.write("answers", {"step": 3, "samples": answers(folder)})
    journal.close()


def test_wandb_gets_numbers_and_samples(stand_ins, tmp_path):
    write_all(tmp_path, "wandb")
    first = ((9, 7), "question: What <b>?\nanswer: a\ntrue: red")
    assert stand_ins == [
        ("init", "mine", "allow"),
        ("log", {"train/loss": 0.5, "memory/host_bytes": 7}, 2),
        ("log", {"answers/1": first}, 3),
        ("log", {"answers/2": [[3, "question: And?\nanswer: b"]]}, 3),
        "finish",
    ]


def test_mlflow_gets_numbers_and_samples_into_the_runs_own_files(stand_ins, tmp_path):
    write_all(tmp_path, "mlflow")
    place, files, *told = stand_ins
    assert place == f"sqlite:///{tmp_path / 'mlflow.db'}" and files == (tmp_path / "mlflow-files").as_uri()
    assert ("log_metric", "run of mine", "train/loss", 0.5, 2) in told
    assert ("log_text", "run of mine", "question: And?\nanswer: b", "answers/2/step-000003.txt") in told
    assert [one[3] for one in told if one[0] == "log_image"] == ["answers/1/picture.png"]
    assert told[-1] == ("set_terminated", "run of mine")


def test_mlflow_itself_keeps_them_and_a_continued_run_goes_on_in_its_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_all(tmp_path, "mlflow")
    write_all(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mmadapter").experiment_id])
    assert run.data.metrics["train/loss"] == 0.5 and run.info.status == "FINISHED"
    assert (tmp_path / "mlflow-files" / run.info.run_id / "artifacts" / "answers/1/picture.png").is_file()


def test_a_board_whose_package_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (told,) = TrainingConf(mlflow=True).contradictions("training")
    assert told == "training.mlflow=true, but mlflow is not installed: pip install mlflow, or training.mlflow=false"


def test_records_of_another_shape_are_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"kind": "train", "step": 1, "loss": 2.0}',
        '{"kind": "train", "loss": 2.0}',
        '{"kind": "train", "step": "x"}',
    ]
    lines += [
        '{"kind": "train", "step": 2, "loss": "low"}',
        "[1]",
        "[" * 100_000,
        '{"kind": "train", "step": 3, "loss": null}',
    ]
    path.write_bytes(b"\xff\xfe\n" + "\n".join(lines).encode() + b"\n")
    assert steps_in(path) == [1, 3]
