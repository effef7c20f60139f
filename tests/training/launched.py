"""Whole runs of several forked processes, as the entry would do them, and what they leave."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmadapter.data.training import RunData
from mmadapter.errors import InputError
from mmadapter.runs.journal import read_metrics
from mmadapter.training.run import run
from tests.distributed.several import Several
from tests.training.tiny_run import tiny_conf

SHORT = ("evaluate=[]", "engine.name=zero1", "training.save_every_steps=4", "optimizer.epochs=1")


def short(inputs, runs, *overrides):
    conf = tiny_conf(inputs, runs, *SHORT, *overrides)
    conf.comparison = {}
    return conf


def run_like_the_entry(conf, disturb=None):
    """What train.py does, with what the entry does about an InputError; `disturb(rank)` prepares trouble."""
    torch.set_num_threads(1)
    if disturb is not None:
        disturb(int(os.environ["RANK"]))
    try:
        run(conf)
    except InputError as error:
        print(f"error: {error}")
        sys.exit(2)


def several(conf, folder, disturb=None, count=2):
    group = Several(count, run_like_the_entry, conf, disturb, folder=folder)
    return group, group.end()


def folder_of(runs: Path) -> Path:
    (file,) = runs.glob("*/config.yaml")
    return file.parent


def losses(runs: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder_of(runs) / "metrics.jsonl", "train")]


def adapter(runs: Path) -> dict:
    return load_file(folder_of(runs) / "adapter" / "adapter.safetensors")


def run_here(inputs: Path, runs: Path) -> Path:
    """The same run in one process: this one, so that those that are forked later find all imported."""
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (takes 3 s; DeepSpeed wants it at every start)

    conf = short(inputs, runs)
    conf.engine.name = "single"
    run(conf)
    return runs


def at_step(number, does):
    """Lets `does()` come before step `number` (from 0): when the loop asks for that step's batches."""
    original = RunData.step_batches

    def disturbed(self, step):
        if step == number:
            does()
        return original(self, step)

    RunData.step_batches = disturbed
