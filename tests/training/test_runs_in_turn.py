"""Whole runs of shared hosts one after the other in the same two processes, each with an arm for comparison."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mmadapter.training.run import run
from tests.distributed.several import Several
from tests.training.tiny_run import save_inputs, tiny_conf

DEADLINE = 150.0  # seconds on a busy machine


def run_in_turn(*confs):
    torch.set_num_threads(1)
    for conf in confs:
        run(conf)


@pytest.mark.slow
def test_a_second_run_in_the_same_processes_ends_like_the_first(tmp_path):
    torch.set_num_threads(1)
    inputs = save_inputs(tmp_path / "inputs")
    settings = ("engine.name=zero3", "optimizer.epochs=1", "evaluate=[]")
    confs = [tiny_conf(inputs, tmp_path / name, *settings) for name in ("first", "second")]
    group = Several(2, run_in_turn, *confs, folder=tmp_path / "said")
    assert group.end(DEADLINE) == [0, 0], group.said(0) + group.said(1)
    first, second = (sorted((tmp_path / name).rglob("adapter.safetensors")) for name in ("first", "second"))
    assert len(first) == len(second) == 2, "the run and its comparison"
    for one, other in zip(first, second, strict=True):
        ours, theirs = load_file(one), load_file(other)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
