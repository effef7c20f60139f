"""Resume of several processes: one of them killed at any moment, all stopped, another engine and number on the way.

MMADAPTER_KILLS=20 python -m pytest -m slow tests/training/test_kills_together.py   (without the variable: 4 kills)
"""

import os
import random
import signal

import pytest
import torch

from mmadapter.runs.journal import read_metrics
from mmadapter.training.run import run
from tests.distributed.several import Several
from tests.training.kills import Kill
from tests.training.launched import adapter, at_step, losses, run_like_the_entry, short
from tests.training.tiny_run import save_inputs

SETTINGS = (
    "run=mine",
    "training.save_every_steps=2",
    "training.validate_every_steps=5",
    "optimizer.epochs=2",
    "launch.meet_seconds=20",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (takes 3 s; DeepSpeed wants it at every start)

    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def start(inputs, runs, engine, count, said, disturb=None):
    conf = short(inputs, runs, *SETTINGS, f"engine.name={engine}")
    return Several(count, run_like_the_entry, conf, disturb, folder=said)


def completed(inputs, runs, engine, count):
    group = start(inputs, runs, engine, count, runs.with_name(f"{runs.name}-said"))
    statuses = group.end()
    assert statuses == [0] * count, [group.said(rank) for rank in range(count)]
    return runs


def drawn(rng, number):
    """The first kills are those that matter most: kill -9 of one process, then one within a save."""
    kill = Kill.draw(rng, steps=6, seconds=4.0)
    certain = {0: ("steps", rng.randrange(1, 6)), 1: ("save", 1)}.get(number)
    return kill if certain is None else Kill(signal.SIGKILL, *certain, 0.001)


def assert_ended_together(kill, killed, group, statuses):
    """The one that was hit by the signal; the others by it as well, or because it had gone."""
    said = [group.said(rank) for rank in range(len(statuses))]
    assert None not in statuses, ("a process hangs", kill, said)
    assert kill.expected(statuses[killed]), (kill, statuses, said)
    if kill.number == signal.SIGKILL and statuses[killed] == -9:
        assert all(status in (0, 1, 2) for status in statuses if status != -9), (kill, statuses, said)
    assert "Traceback" not in "".join(said), said


KILLS = int(os.environ.get("MMADAPTER_KILLS", "4"))


@pytest.mark.parametrize(
    "engine, kills",
    [("zero3", 3), *(pytest.param(engine, KILLS, marks=pytest.mark.slow) for engine in ("zero1", "zero2", "zero3"))],
)
def test_one_of_two_processes_killed_again_and_again(inputs, tmp_path, engine, kills):
    undisturbed = completed(inputs, tmp_path / "undisturbed", engine, 2)
    rng, runs, struck, number = random.Random(f"{engine} {kills}"), tmp_path / "runs", 0, 0
    while struck < kills:
        kill, killed = drawn(rng, struck), rng.randrange(2)
        if (runs / "mine" / "finished.json").is_file():
            runs = tmp_path / f"runs-{number}"
        number += 1
        group = start(inputs, runs, engine, 2, tmp_path / f"said-{number}")
        process = group.processes[killed]
        struck += kill.strike(runs / "mine", process.pid, process.is_alive)
        assert_ended_together(kill, killed, group, group.end())
    completed(inputs, runs, engine, 2)
    assert losses(runs) == losses(undisturbed)
    one, other = adapter(runs), adapter(undisturbed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not [path for path in (runs / "mine").rglob(".*")], "nothing half-written is left"


def test_a_run_goes_on_with_another_engine_and_another_number_of_processes(inputs, tmp_path):
    """One process, then two that share out the host, then one: the curve of an undisturbed run to summation order.

    Float32 sums in another order: about 1e-7 of a loss a step. Adam divides by the root of small second moments, which
    makes some 1e-6 of a parameter of it over twenty steps.
    """
    whole = short(inputs, tmp_path / "undisturbed", *SETTINGS, "engine.name=single")
    run(whole)
    runs, legs = tmp_path / "runs", [("single", 1, 6), ("zero3", 2, 13), ("zero1", 1, None)]
    for engine, count, stop in legs:

        def disturb(rank, stop=stop):
            if stop is not None and rank == 0:
                at_step(stop - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))

        group = start(inputs, runs, engine, count, tmp_path / engine, disturb)
        assert group.end() == [0 if stop is None else 143] * count, group.said(0)
    events = [event for event in read_metrics(runs / "mine" / "metrics.jsonl", "event") if event["event"] == "resumed"]
    assert [(e["step"], e["engine"], e["processes"]) for e in events] == [(6, "zero3", 2), (13, "zero1", 1)]
    assert losses(runs) == pytest.approx(losses(tmp_path / "undisturbed"), rel=2e-6)
    one, other = adapter(runs), adapter(tmp_path / "undisturbed")
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in one)
