"""Runs whose pictures are read by workers: the same result; death, signals and kill -9 leave nothing behind."""

import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver

import pytest
import torch

from mmadapter.training.run import run
from mmadapter.vision import reading
from mmadapter.vision.encoder import VisionEncoder
from tests.distributed.several import in_own_process
from tests.training.test_run import assert_same_adapter, losses
from tests.training.tiny_run import save_inputs, tiny_conf
from tests.vision.test_workers import gone


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def conf_of(inputs, runs, workers):
    settings = ("run=mine", "optimizer.epochs=0.3", "evaluate=[]")
    conf = tiny_conf(inputs, runs, *settings, f"vision.workers={workers}")
    conf.comparison = {}
    return conf


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    run(conf_of(inputs, runs, 0))
    return runs / "mine"


def start(inputs, runs, at_first_picture):
    """A run with two workers in a process of its own, which calls this once it has its first picture."""

    def body():
        forkserver._forkserver.__init__()  # the tests' own, if they have started one, is no child of this process
        original, calls = VisionEncoder.encode_one, []

        def encode_one(self, pixels):
            if not calls:
                calls.append(at_first_picture([child.pid for child in multiprocessing.active_children()]))
            return original(self, pixels)

        VisionEncoder.encode_one, reading.WORTH_A_WORKER = encode_one, 1
        run(conf_of(inputs, runs, 2))

    return in_own_process(body, output=runs / "output")


def assert_same(folder, undisturbed):
    assert losses(folder) == losses(undisturbed)
    assert_same_adapter(folder, undisturbed)


def test_a_dead_worker_ends_the_run_with_its_message_and_the_same_command_goes_on(inputs, undisturbed, tmp_path):
    process = start(inputs, tmp_path, lambda workers: os.kill(workers[0], signal.SIGKILL))
    process.join(60)
    assert process.exitcode == 1, "the entry makes 2 of an InputError"
    assert "has ended by itself, with status -9" in (tmp_path / "output").read_text()
    again = start(inputs, tmp_path, lambda workers: None)
    again.join(60)
    assert again.exitcode == 0
    assert_same(tmp_path / "mine", undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_a_run_that_is_ended_while_it_reads_takes_its_workers_along(inputs, undisturbed, tmp_path, name):
    told = tmp_path / "workers"

    def tell_and_wait(workers):
        told.with_name("half").write_text(" ".join(map(str, workers)))
        told.with_name("half").rename(told)
        time.sleep(60)

    process = start(inputs, tmp_path, tell_and_wait)
    deadline = time.monotonic() + 60
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [int(pid) for pid in told.read_text().split()]
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert len(workers) == 2 and process.exitcode == (143 if name == "SIGTERM" else -9)
    run(conf_of(inputs, tmp_path, 0))  # at once: nobody holds the run folder's lock any more
    assert_same(tmp_path / "mine", undisturbed)
    assert gone(workers, within=10)
