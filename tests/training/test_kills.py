"""Resume under fire: ended anywhere, by anything, again and again; the run that comes of it is the undisturbed one.

Saves come on the run's own schedule, moments are drawn from a seed. With everything that a start from a shell brings:

    MMADAPTER_KILLS=40 python -m pytest -m slow tests/training/test_kills.py     (without the variable: 6 kills)
"""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from mmadapter.runs.journal import read_metrics
from mmadapter.training.run import run
from tests.distributed.several import in_own_process
from tests.training.kills import Kill
from tests.training.tiny_run import save_inputs, tiny_conf, tiny_overrides

PARTS = ("", "comparison/text_only")
SETTINGS = (
    *("optimizer.epochs=3", "training.save_every_steps=3", "training.validate_every_steps=8"),
    *("evaluate=[scienceqa]", "~comparison.host"),
)
TIMES = ("time", "seconds", "tokens_per_s", "memory")
ENDS = ("report.html", "summary.json", "finished.json", "eval/scienceqa/metrics.json", "adapter/adapter.json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    run(tiny_conf(inputs, runs, "run=mine", *SETTINGS))
    return runs / "mine"


def curve(folder):
    """All numbers of the loss curve, without times."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] in ("train", "validation")]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def results(folder):
    """What must not depend on how often a run was ended, to the bit."""
    weights = [
        (folder / part / "adapter" / "adapter.safetensors").read_bytes() for part in ("", "comparison/text_only")
    ]
    predictions = [path.read_bytes() for path in sorted(folder.glob("eval/*/predictions.jsonl"))]
    return weights, predictions, [curve(folder / part) for part in PARTS]


def assert_same(folder, undisturbed):
    assert results(folder) == results(undisturbed)
    assert [name for name in ENDS if not (folder / name).is_file()] == []
    assert json.loads((folder / "summary.json").read_text())["training"]["finished"]
    assert not [path for path in folder.rglob(".*")], "nothing half-written is left"


def under_fire(rng, folder_of, start, kills, seconds):
    """Starts and kills until there were so many; a run that came through is followed by another. The folders of all."""
    folders, struck = [folder_of(0)], 0
    while struck < kills:
        if (folders[-1] / "finished.json").is_file():
            folders.append(folder_of(len(folders)))
        kill = Kill.draw(rng, steps=8, seconds=seconds)
        pid, is_alive, end, said = start(folders[-1])
        struck += kill.strike(folders[-1], pid, is_alive)
        status = end()
        assert kill.expected(status), (kill, status, said.read_text())
    return folders


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_again_and_again_anywhere(inputs, undisturbed, tmp_path, seed):
    def conf(folder):
        return tiny_conf(inputs, tmp_path, f"run={folder.name}", *SETTINGS)

    def start(folder) -> tuple[int, Callable, Callable, object]:
        process = in_own_process(lambda: run(conf(folder)), output=tmp_path / "output")
        return process.pid, process.is_alive, lambda: process.join(120) or process.exitcode, tmp_path / "output"

    for folder in under_fire(random.Random(seed), lambda number: tmp_path / f"run-{number}", start, 4, seconds=2.0):
        run(conf(folder))
        assert_same(folder, undisturbed)


WRITERS = {
    "settings": "mmadapter.config.save_config",
    "journal": "mmadapter.runs.journal.Journal.write",
    "start": "mmadapter.training.movement.RunStart.save",
    "checkpoint": "mmadapter.training.checkpoint.CheckpointFolder.save",
    "adapter": "mmadapter.methods.folder.write_adapter",
    "predictions": "mmadapter.tasks.task.write_json_lines",
    "scores": "mmadapter.tasks.task.write_json",
    "report": "mmadapter.reports.report.write_report",
}
QUICK = ("settings", "checkpoint", "report")


@pytest.mark.parametrize("what", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in WRITERS])
def test_a_disk_that_is_full_anywhere_costs_nothing_but_a_second_go(inputs, undisturbed, tmp_path, monkeypatch, what):
    """While one kind of file is written, none may grow past 300 bytes: the nearest to a full disk without a mount."""
    conf = tiny_conf(inputs, tmp_path, "run=mine", *SETTINGS)
    module, name = WRITERS[what].rsplit(".", 1)
    holder, class_name = (module, None) if module.islower() else module.rsplit(".", 1)
    owner = import_module(holder)
    owner = getattr(owner, class_name) if class_name else owner
    original = getattr(owner, name)

    def in_little_room(*arguments, **keywords):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        try:
            return original(*arguments, **keywords)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    for loaded in [owner, *list(sys.modules.values())]:
        if loaded is owner or getattr(loaded, name, None) is original:
            monkeypatch.setattr(loaded, name, in_little_room)
    process = in_own_process(lambda: run(conf), output=tmp_path / "output")
    process.join(120)
    said = (tmp_path / "output").read_text()
    assert process.exitcode == 1 and "File too large" in said, said
    monkeypatch.undo()
    run(conf)
    assert_same(tmp_path / "mine", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("engine, processes", [("single", 1), ("zero1", 2), ("zero2", 2), ("zero3", 2)])
def test_the_command_itself_killed_anywhere(inputs, tmp_path, checkout, engine, processes):
    launch = [] if processes == 1 else [f"launch.processes={processes}"]

    def command(folder):
        settings = [*tiny_overrides(inputs, tmp_path), *SETTINGS, f"engine={engine}", f"run={folder.name}", *launch]
        return [sys.executable, "train.py", *settings]

    def start(folder) -> tuple[int, Callable, Callable, object]:
        with open(tmp_path / "output", "w") as output:
            process = subprocess.Popen(command(folder), cwd=checkout, stdout=output, stderr=subprocess.STDOUT)
        return process.pid, lambda: process.poll() is None, lambda: process.wait(120), tmp_path / "output"

    subprocess.run(command(tmp_path / "undisturbed"), cwd=checkout, check=True, timeout=300)
    kills = int(os.environ.get("MMADAPTER_KILLS", "6"))
    for folder in under_fire(
        random.Random(engine), lambda number: tmp_path / f"run-{number}", start, kills, seconds=20
    ):
        subprocess.run(command(folder), cwd=checkout, check=True, timeout=300)
        assert_same(folder, tmp_path / "undisturbed")
