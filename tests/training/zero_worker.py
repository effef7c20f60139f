"""One of several processes that run engine cases: `python -m tests.training.zero_worker RANK COUNT FOLDER few|all`.

Starting takes seconds, most cases a fraction of one. Each gives plain values and tensors, which the first process
writes into FOLDER.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmadapter import processes
from mmadapter.adapters.roles import GroupSettings, parameter_groups
from mmadapter.assistant import GenerationSettings
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.tokens import SampleEncoder
from mmadapter.processes import here
from mmadapter.training.deepspeed_start import Sharing
from mmadapter.training.engine import EngineState, SingleDeviceEngine, StepResult
from mmadapter.training.optimizer import OptimizerSettings
from mmadapter.training.zero import ZeroEngine
from tests.assistants import assistant_on, picture, sample
from tests.training.toy import ToyAssistant, toy_sample

ENGINES = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
STAGES = ENGINES[:4]
STEPS = 6
TOGETHER = {"all": None}
DISJOINT = {"instruction": ("instructions",), "visual": ("captions",)}
VISUAL_ROLES = ("visual_projection", "early_gate")
COLOURS = ["red", "blue", "green", "small", "large"]


def groups_of(assistant, sources: dict, frozen: Sequence[str] = ()):
    """Groups by name: all roles, or those of the instructions and those of pictures."""
    roles = sorted({item.role for item in assistant.trainable()}.difference(frozen))
    visual = [role for role in roles if role in VISUAL_ROLES]
    chosen = {"all": roles, "visual": visual, "instruction": [role for role in roles if role not in visual]}
    settings = {name: GroupSettings(chosen[name], sources=learns) for name, learns in sources.items()}
    return parameter_groups(assistant.trainable(), settings, frozen)


def engine_of(name: str, assistant, groups, clip: float | None = 0.05):
    """An engine with decay and clipping."""
    parts = (assistant, groups, assistant.trainable(), OptimizerSettings(weight_decay=0.3, clip_norm=clip))
    return SingleDeviceEngine(*parts) if name == "single" else ZeroEngine(*parts, sharing=Sharing.of(name))


def own_part(encoded: Sequence, single: bool) -> Batch:
    """Every `count`-th sample of a micro-batch, or a filler where that is none."""
    if single:
        return make_batch(encoded, 0)
    mine = encoded[here().rank :: here().count]
    visual = any(item.sample.image is not None for item in encoded)
    return dataclasses.replace(make_batch(mine or encoded[:1], 0), filler=not mine, visual=visual)


def toy_step(step: int, sources: Sequence[str], size: int = 6) -> list[list]:
    """Two micro-batches of each source, of `size` and 3 samples."""
    return [
        [toy_sample(source, 100 * step + number) for number in numbers]
        for source in sources
        for numbers in (range(size), range(50, 53))
    ]


def run_steps(
    name: str, engine, micro_batches: Callable[[int], list[list]], steps: Sequence[int] = range(STEPS)
) -> list[StepResult]:
    """Steps on the process's parts of the micro-batches."""
    return [engine.step([own_part(m, name == "single") for m in micro_batches(step)], 1e-2) for step in steps]


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
    assistant = ToyAssistant().train()
    engine = engine_of(name, assistant, groups_of(assistant, TOGETHER))
    return outcome(engine, run_steps(name, engine, both_sources))


def disjoint(name: str, folder: Path, sources: Sequence[str] = ("instructions", "captions"), broken=()) -> dict:
    """Each source teaches its own group; without captions the visual group is in no group at all."""
    assistant = ToyAssistant(dropout=0.3).train()
    forward = assistant.forward

    def maybe_broken(batch):
        loss = forward(batch)
        return loss * math.nan if batch.source in broken and here().rank == 0 else loss

    assistant.forward = maybe_broken
    groups = {group: learns for group, learns in DISJOINT.items() if learns[0] in sources}
    frozen = () if "visual" in groups else VISUAL_ROLES
    if frozen:
        trainable = assistant.trainable
        assistant.trainable = lambda: [item for item in trainable() if item.role not in frozen]
    engine = engine_of(name, assistant, groups_of(assistant, groups))
    return outcome(engine, run_steps(name, engine, lambda step: toy_step(step, sources)))


def idle(name: str, folder: Path) -> dict[str, Any]:
    """After two joint steps one of instructions only, then one of fewer samples than processes, then one of nothing."""
    assistant = ToyAssistant().train()
    engine = engine_of(name, assistant, groups_of(assistant, DISJOINT))
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
    assistant, fresh = ToyAssistant().train(), ToyAssistant(seed=9).train()
    fresh.load_state_dict({k: v for k, v in assistant.state_dict().items() if "adapter" not in k}, strict=False)
    engine = engine_of(name, assistant, groups_of(assistant, TOGETHER))
    results = run_steps(name, engine, both_sources, range(3))
    middle = engine.state_dict()
    other = engine_of(name, fresh, groups_of(fresh, TOGETHER))
    other.load_state_dict(middle)
    loaded = plain(other.state_dict())
    results += run_steps(name, other, both_sources, range(3, STEPS))
    return outcome(other, results) | {"middle": middle, "loaded": loaded}


def taken_over(name: str, folder: Path) -> dict[str, Any]:
    """Three steps from the state that `single` reached after three (middle.pt)."""
    assistant = ToyAssistant(seed=9).train()
    assistant.load_state_dict(
        {k: v for k, v in ToyAssistant().state_dict().items() if "adapter" not in k}, strict=False
    )
    engine = engine_of(name, assistant, groups_of(assistant, TOGETHER))
    engine.load_state_dict(torch.load(folder / "middle.pt", weights_only=False))
    return outcome(engine, run_steps(name, engine, both_sources, range(3, STEPS)))


def question(assistant, folder: Path, source: str, number: int):
    """A question about a colour; of two captions one has a picture, so that process 0 of 2 has all of them."""
    image = folder / f"{number % 4}.png" if source == "captions" and number % 2 == 0 else None
    item = sample("what colour is the circle", COLOURS[number % 5] + " ." * (number % 3), image, str(number), source)
    return SampleEncoder(assistant.tokenizer, 64).encode(item)


def whole_assistant(
    name: str,
    folder: Path,
    host: str,
    groups: dict = TOGETHER,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    sources: Sequence[str] = ("instructions", "captions"),
) -> dict[str, Any]:
    """A real assistant on a tiny host, with pictures, validation and answers in between."""
    assistant = assistant_on(host, activation_checkpointing=checkpointing)
    trained = {id(item.parameter) for item in assistant.trainable()}
    base = {name: p for name, p in assistant.host.named_parameters() if id(p) not in trained}
    for parameter in base.values():
        parameter.data = parameter.data.to(dtype)
    before = {name: parameter.detach().clone() for name, parameter in base.items()}
    assistant.train()
    chosen = {group: learns for group, learns in groups.items() if learns is None or learns[0] in sources}
    frozen = VISUAL_ROLES if groups is DISJOINT and "visual" not in chosen else ()
    for item in assistant.trainable():
        item.parameter.requires_grad_(item.role not in frozen)
    engine = engine_of(name, assistant, groups_of(assistant, chosen, frozen))

    def micro_batches(step: int) -> list[list]:
        return [
            [question(assistant, folder, source, 10 * step + number) for number in range(first, last)]
            for source in sources
            for first, last in ((0, 4), (4, 7))
        ]

    results = run_steps(name, engine, micro_batches, range(2))
    stored = sum(stored_bytes(parameter) for parameter in base.values())
    assistant.eval()
    validation = here().sum([engine.loss_sum(own_part(m, name == "single")) for m in micro_batches(9)])
    texts = [question(assistant, folder, "captions", n).sample for n in range(2)]
    answers = assistant.generate(texts, GenerationSettings(max_new_tokens=4))
    assistant.train()
    results += run_steps(name, engine, micro_batches, range(2, 4))
    facts = {"validation": validation, "answers": answers, "bytes": here().gather(stored)}
    return outcome(engine, results) | facts | {"base unchanged": unchanged(base, before)}


def stored_bytes(parameter) -> int:
    """What this process holds of a parameter."""
    own = parameter.data.numel() * parameter.element_size()
    part = getattr(parameter, "ds_tensor", None)
    return own if part is None else own + part.numel() * part.element_size()


def unchanged(base: dict[str, Any], before: dict[str, torch.Tensor]) -> bool:
    """Whether all frozen tensors are what they were, bit by bit."""
    from deepspeed.runtime.zero import GatheredParameters

    shared = [parameter for parameter in base.values() if hasattr(parameter, "ds_id")]
    with GatheredParameters(shared, enabled=bool(shared)):
        return all(torch.equal(base[name], tensor) for name, tensor in before.items())


def wait_for(workers: Sequence[subprocess.Popen], seconds: float) -> None:
    """Until all are done; a failure or the time limit ends the others."""
    try:
        for worker in workers:
            worker.wait(timeout=seconds)
    finally:
        for worker in workers:
            worker.kill()


def start_workers(count: int, folder: Path, which: str) -> list[subprocess.Popen]:
    """The processes of one group, their errors going to FOLDER/RANK.err."""
    for number in range(4):
        picture(folder, number)
    started = []
    for rank in range(count):
        command = [sys.executable, "-m", "tests.training.zero_worker", str(rank), str(count), str(folder), which]
        with (folder / f"{rank}.err").open("w") as errors:
            started.append(subprocess.Popen(command, stderr=errors))
    return started


def main(rank: int, count: int, folder: Path, which: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), count), rank=rank, world_size=count)
    processes._here = processes.Processes(rank, count, rank)
    found = {}
    for key, case in cases(count, which).items():
        began = time.perf_counter()
        found[key] = case(folder)
        if rank == 0:
            print(f"{key}: {time.perf_counter() - began:.1f} s", flush=True)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def cases(count: int, which: str) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """By name, each ending in its engine's; `few` are those that a test run can always afford."""
    found: dict[str, Callable] = {f"toy {name}": partial(toy, name) for name in ENGINES}
    small = {
        "disjoint": disjoint,
        "instructions": partial(disjoint, sources=["instructions"]),
        "broken": partial(disjoint, broken=["captions"]),
        "idle": idle,
        "passed on": passed_on,
        "taken over": taken_over,
    }
    found |= {f"{kind} {name}": partial(case, name) for kind, case in small.items() for name in STAGES}
    if which == "few" and count == 1:
        return found
    found |= {f"llama_gqa {name}": partial(whole_assistant, name, host="llama_gqa") for name in ("zero2", "zero3")}
    joint = partial(whole_assistant, host="v2 llama_gqa", groups=DISJOINT, checkpointing=True)
    alone = partial(joint, sources=["instructions"])
    for kind, case in (("joint recomputed", joint), ("alone recomputed", alone)):
        found |= {f"{kind} {name}": partial(case, name) for name in ("zero2", "zero3")}
    return found if which == "few" else found | longer_cases(joint, alone)


def longer_cases(joint: Callable, alone: Callable) -> dict[str, Callable]:
    """More hosts, and joint training at all stages with and without checkpointing."""
    found: dict[str, Callable] = {}
    for name in STAGES:
        found[f"bfloat16 {name}"] = partial(whole_assistant, name, host="v2 llama_gqa", dtype=torch.bfloat16)
        for kind, case in (("joint", joint), ("alone", alone)):
            found[f"{kind} recomputed {name}"] = partial(case, name)
            found[f"{kind} kept {name}"] = partial(case, name, checkpointing=False)
    for host in ("v2 qwen3", "v2_lora llama_bias"):
        found |= {f"{host} {name}": partial(whole_assistant, name, host=host) for name in ("zero2", "zero3")}
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
