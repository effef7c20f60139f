"""`mmadapter runs table efficiency`: its figures are those of the runs' own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mmadapter.runs.__main__ import main
from tests.made_runs import made_run

WORDS = ["red", "blue", "green", "one", "two", "sky"]
SAMPLES = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in WORDS]


def trained(checkout, folder, *settings):
    """A run of two steps on the tiny host."""
    data = folder.parent / "data.json"
    data.write_text(json.dumps(SAMPLES))
    words = ["experiment=finetune", "host=tiny", f"data.path={data}", "optimizer.steps=2", "optimizer.batch_size=2"]
    command = [sys.executable, "train.py", *words, f"run={folder}", *settings]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("adapter", ["v1", "v2", "lora"])
def test_parameters_bytes_and_time_are_those_of_the_run(checkout, tmp_path, capsys, adapter):
    folder = trained(checkout, tmp_path / adapter, f"adapter={adapter}")
    assert main(["table", "efficiency", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)

    trainable = json.loads((folder / "trainable.json").read_text())
    assert row["parameters"] == sum(line["parameters"] for line in trainable)
    assert row["file_bytes"] == (folder / "adapter" / "adapter.safetensors").stat().st_size
    summary = json.loads((folder / "summary.json").read_text())
    assert row["exchanged_bytes"] is None, "one process exchanges nothing"
    assert row["peak_bytes"] == summary["peak"]["host_bytes"]
    assert row["seconds_per_step"] == summary["training"]["seconds"] / 2


def test_two_processes_exchange_the_gradients_once_and_a_few_sums(checkout, tmp_path, capsys):
    trained(checkout, tmp_path / "two", "adapter=lora", "engine=zero0", "launch.processes=2")
    assert main(["table", "efficiency", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    gradients = 4 * row["parameters"]
    assert gradients < row["exchanged_bytes"] < gradients + 100


def test_what_a_run_does_not_tell_is_a_dash_and_unfinished_runs_are_left_out(tmp_path, capsys):
    made_run(tmp_path / "old", "finished")
    made_run(tmp_path / "stopped", "stopped")
    assert main(["table", "efficiency", str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[2].split("  ")
    assert [cell.strip() for cell in row if cell] == [
        str(tmp_path / "old"),
        "-",
        "-",
        "-",
        "900.0 MB",
        "-",
        "0.5000",
        "20.0",
    ]


def test_another_table_is_refused_by_name(capsys):
    assert main(["table", "speed"]) == 2
    assert "got speed; there is: efficiency" in capsys.readouterr().err
