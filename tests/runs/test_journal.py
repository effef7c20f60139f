"""metrics.jsonl: one whole line a record, cut back to the checkpoint, tolerant of a torn end."""

import json
import math
from pathlib import Path

import pytest

from mmadapter.runs.journal import Journal, read_metrics


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
        journal = Journal(tmp_path, tensorboard=True)
        journal.open_boards(steps[0] - 1)
        for step in steps:
            journal.write("train", {"step": step, "loss": float(step), "gates": [[0.5, -0.5]], "loss_by_source": {}})
        journal.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert board.Scalars("gates/layer_0")[0].value == 0.5


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
