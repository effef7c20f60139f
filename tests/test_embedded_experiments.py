"""The experiments on real hosts and data, typed without either: they run on what comes with the package, and say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.shapes import make_world
from tests.training.tiny_run import SIZES

CHECKOUT = Path(__file__).parents[1]


def train(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "train.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


def settings(*words: str, folder: Path) -> dict:
    told = train(*words, "--cfg", "job", folder=folder)
    assert told.returncode == 0, told.stderr
    return yaml.safe_load(told.stdout)


def test_an_experiment_without_host_and_data_runs_and_says_so_first_and_in_the_report(tmp_path):
    make_world(tmp_path / "data" / "shapes", sizes=SIZES)
    small = [
        "optimizer.epochs=1",
        "optimizer.batch_size=4",
        "optimizer.micro_batch_size=4",
        "optimizer.warmup_epochs=0",
    ]
    told = train("experiment=alpaca", *small, "tasks.instruct.limit=1", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    notice = "experiment=alpaca was given neither a host nor data"
    assert told.stdout.startswith(notice)
    real = "mmadapter train experiment=alpaca host.path=/models/llama-7b data.sources.alpaca.path=alpaca_data.json"
    assert real in told.stdout
    (folder,) = (tmp_path / "runs").glob("alpaca_embedded-*")
    assert notice in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["embedded"].startswith("host.path=")


def test_what_is_typed_besides_holds_and_host_with_data_is_the_real_thing(tmp_path):
    own = settings("experiment=scienceqa", "optimizer.epochs=3", "adapter.prompts.length=4", folder=tmp_path)
    assert own["embedded"] and own["host"]["path"] == "tiny" and own["data"]["root"] == "data/shapes"
    assert own["optimizer"]["epochs"] == 3 and own["adapter"]["prompts"]["length"] == 4
    real = settings("experiment=scienceqa", "host.path=/m/llama", "data.root=/d/sqa", folder=tmp_path)
    assert real["embedded"] is None and real["host"]["path"] == "/m/llama" and real["optimizer"]["epochs"] == 30
    assert settings(folder=tmp_path)["embedded"] is None


@pytest.mark.parametrize(
    "given,lacks,line",
    [
        ("data.root=/d/sqa", "data, but no host", "experiment=scienceqa data.root=/d/sqa host.path=/models/llama-7b"),
        ("host=tiny", "a host, but no data", "experiment=scienceqa host=tiny data.root=/data/scienceqa"),
    ],
)
def test_one_of_the_two_alone_is_refused_with_lines_to_copy(tmp_path, given, lacks, line):
    told = train("experiment=scienceqa", given, folder=tmp_path)
    assert told.returncode == 2 and told.stderr.startswith(f"error: experiment=scienceqa was given {lacks}")
    assert f"mmadapter train {line}" in told.stderr and list(tmp_path.iterdir()) == []
