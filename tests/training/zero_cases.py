"""Small cases for an engine on several processes: each takes an engine's name, and gives plain values and tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmadapter.data.batches import Batch, make_batch
from mmadapter.methods.groups import parameter_groups
from mmadapter.methods.settings import GroupConf
from mmadapter.training.engine import EngineState, SingleDeviceEngine, StepResult
from mmadapter.training.settings import EngineConf, OptimizerConf
from mmadapter.training.zero import ZeroEngine
from tests.distributed.several import here
from tests.training.toy import ToyModel, toy_sample

ENGINES = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
STAGES = ENGINES[:4]
STEPS = 6
TOGETHER = {"all": None}
DISJOINT = {"instruction": ("instructions",), "visual": ("captions",)}
VISUAL_ROLES = ("visual_projection", "early_gate")


def groups_of(model, sources: dict, frozen: Sequence[str] = ()):
    """Groups by name: all roles, or those of the instructions and those of pictures."""
    roles = sorted({item.role for item in model.trainable_parameters()}.difference(frozen))
    visual = [role for role in roles if role in VISUAL_ROLES]
    chosen = {"all": roles, "visual": visual, "instruction": [role for role in roles if role not in visual]}
    settings = {name: GroupConf(chosen[name], sources=learns) for name, learns in sources.items()}
    return parameter_groups(model.trainable_parameters(), settings, frozen)


def engine_of(name: str, model, groups, clip: float | None = 0.05):
    """An engine with decay and clipping."""
    parts = (model, groups, OptimizerConf(weight_decay=0.3, clip_norm=clip))
    if name == "single":
        return SingleDeviceEngine(*parts)
    return ZeroEngine(*parts, 0, EngineConf(name), here())


def own_part(encoded: Sequence, single: bool, store=None) -> Batch:
    """Every `count`-th sample of a micro-batch, or a filler where that is none, with the features that a store has."""
    if single:
        return make_batch(encoded, 0).with_features(store)
    mine = encoded[here().rank :: here().world_size]
    visual = any(item.sample.image is not None for item in encoded)
    batch = dataclasses.replace(make_batch(mine or encoded[:1], 0), filler=not mine, visual=visual)
    return batch.with_features(store)


def toy_step(step: int, sources: Sequence[str], size: int = 6) -> list[list]:
    """Two micro-batches of each source, of `size` and 3 samples."""
    return [
        [toy_sample(source, 100 * step + number) for number in numbers]
        for source in sources
        for numbers in (range(size), range(50, 53))
    ]


def run_steps(
    name: str,
    engine,
    micro_batches: Callable[[int], list[list]],
    steps: Sequence[int] = range(STEPS),
    store=None,
    lr: float = 1e-2,
) -> list[StepResult]:
    """Steps on the process's parts of the micro-batches."""
    return [engine.step([own_part(m, name == "single", store) for m in micro_batches(step)], lr) for step in steps]


def outcome(engine, results: Sequence[StepResult]) -> dict[str, Any]:
    """Plain values of everything that a run gave."""
    state = engine.state_dict()
    return {"results": [dataclasses.asdict(result) for result in results], "state": plain(state)}


def plain(state: EngineState) -> dict[str, Any]:
    tensors = dict(state.parameters)
    tensors |= {f"{kind} {name}": t for kind, by_name in state.moments.items() for name, t in by_name.items()}
    return tensors | {f"steps {name}": torch.tensor(count) for name, count in state.steps.items()}


def both_sources(step: int) -> list[list]:
    return toy_step(step, ["instructions", "captions"])


def toy(name: str, folder: Path) -> dict[str, Any]:
    """Both sources teach everything."""
    model = ToyModel().train()
    engine = engine_of(name, model, groups_of(model, TOGETHER))
    return outcome(engine, run_steps(name, engine, both_sources))


def disjoint(name: str, folder: Path, sources: Sequence[str] = ("instructions", "captions"), broken=()) -> dict:
    """Each source teaches its own group; without captions the visual group is in no group at all."""
    model = ToyModel(dropout=0.3).train()
    forward = model.forward

    def maybe_broken(batch):
        loss = forward(batch)
        return loss * math.nan if batch.source in broken and here().rank == 0 else loss

    model.forward = maybe_broken
    groups = {group: learns for group, learns in DISJOINT.items() if learns[0] in sources}
    frozen = () if "visual" in groups else VISUAL_ROLES
    if frozen:
        trainable = model.trainable_parameters
        model.trainable_parameters = lambda: [item for item in trainable() if item.role not in frozen]
    engine = engine_of(name, model, groups_of(model, groups))
    return outcome(engine, run_steps(name, engine, lambda step: toy_step(step, sources)))


def idle(name: str, folder: Path) -> dict[str, Any]:
    """After two joint steps one of instructions only, then one of fewer samples than processes, then one of nothing."""
    model = ToyModel().train()
    engine = engine_of(name, model, groups_of(model, DISJOINT))
    states = {}
    plans = {
        "joint": both_sources,
        "instructions": lambda step: toy_step(step, ["instructions"]),
        "one sample": lambda step: [[toy_sample("instructions", 1)], [toy_sample("captions", 1)]],
        "nothing": lambda step: [[toy_sample("instructions", n, supervised=0) for n in range(4)]],
    }
    results = []
    for plan, micro_batches in plans.items():
        results += run_steps(name, engine, micro_batches, range(2))
        states[plan] = plain(engine.state_dict())
    return outcome(engine, results) | {"states": states}


def passed_on(name: str, folder: Path) -> dict[str, Any]:
    """Three steps, the state into a fresh engine of the same kind, three more; and the state that was passed on."""
    model, fresh = ToyModel().train(), ToyModel(seed=9).train()
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "adapter" not in k}, strict=False)
    engine = engine_of(name, model, groups_of(model, TOGETHER))
    results = run_steps(name, engine, both_sources, range(3))
    middle = engine.state_dict()
    other = engine_of(name, fresh, groups_of(fresh, TOGETHER))
    other.load_state_dict(middle)
    loaded = plain(other.state_dict())
    results += run_steps(name, other, both_sources, range(3, STEPS))
    return outcome(other, results) | {"middle": middle, "loaded": loaded}


def taken_over(name: str, folder: Path) -> dict[str, Any]:
    """Three steps from the state that `single` reached after three (middle.pt)."""
    model = ToyModel(seed=9).train()
    model.load_state_dict({k: v for k, v in ToyModel().state_dict().items() if "adapter" not in k}, strict=False)
    engine = engine_of(name, model, groups_of(model, TOGETHER))
    engine.load_state_dict(torch.load(folder / "middle.pt", weights_only=False))
    return outcome(engine, run_steps(name, engine, both_sources, range(3, STEPS)))
