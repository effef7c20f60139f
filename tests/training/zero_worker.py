"""One of several processes that run many engine cases together: `python -m tests.training.zero_worker RANK COUNT FOLDER`.

Starting takes seconds, a case a fraction of one. Each case gives plain values and tensors; the first process writes
those of all processes into FOLDER.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmadapter import processes
from mmadapter.adapters.roles import GroupSettings, parameter_groups
from mmadapter.data.batches import Batch, make_batch
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
    from mmadapter.data.tokens import SampleEncoder

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
    lora = {id(p) for item in assistant.trainable() for p in [item.parameter]}
    for parameter in assistant.host.parameters():
        if id(parameter) not in lora:
            parameter.data = parameter.data.to(dtype)
    frozen = {name: p.detach().clone() for name, p in assistant.host.named_parameters() if id(p) not in lora}
    assistant.train()
    chosen = {group: learns for group, learns in groups.items() if learns is None or learns[0] in sources}
    frozen_roles = VISUAL_ROLES if groups is DISJOINT and "visual" not in chosen else ()
    for item in assistant.trainable():
        item.parameter.requires_grad_(item.role not in frozen_roles)
    engine = engine_of(name, assistant, groups_of(assistant, chosen, frozen_roles))

    def micro_batches(step: int) -> list[list]:
        return [
            [question(assistant, folder, source, 10 * step + number) for number in range(first, last)]
            for source in sources
            for first, last in ((0, 4), (4, 7))
        ]

    results = run_steps(name, engine, micro_batches, range(2))
    stored = sum(stored_bytes(p) for p in assistant.host.parameters() if id(p) not in lora)
    assistant.eval()
    validation = here().sum([engine.loss_sum(own_part(m, name == "single")) for m in micro_batches(9)])
    texts = [question(assistant, folder, "captions", n).sample for n in range(2)]
    from mmadapter.assistant import GenerationSettings

    answers = assistant.generate(texts, GenerationSettings(max_new_tokens=4))
    assistant.train()
    results += run_steps(name, engine, micro_batches, range(2, 4))
    facts = {"validation": validation, "answers": answers, "bytes": here().gather(stored)}
    return outcome(engine, results) | facts | {"base": unchanged(assistant.host, frozen)}


def stored_bytes(parameter) -> int:
    """What this process holds of a parameter."""
    own = parameter.data.numel() * parameter.element_size()
    part = getattr(parameter, "ds_tensor", None)
    return own if part is None else own + part.numel() * part.element_size()


def unchanged(host, before: dict[str, torch.Tensor]) -> bool:
    """Whether all frozen tensors are what they were, bit by bit."""
    from deepspeed.runtime.zero import GatheredParameters

    now = dict(host.named_parameters())
    shared = [p for p in now.values() if hasattr(p, "ds_id")]
    with GatheredParameters(shared, enabled=bool(shared)):
        return all(torch.equal(now[name], tensor) for name, tensor in before.items())


def wait_for(workers: Sequence[subprocess.Popen], seconds: float) -> None:
    """Until all are done; a failure or the time limit ends the others."""
    try:
        for worker in workers:
            worker.wait(timeout=seconds)
    finally:
        for worker in workers:
            worker.kill()


def start_workers(count: int, folder: Path) -> list[subprocess.Popen]:
    for number in range(4):
        picture(folder, number)
    command = [sys.executable, "-m", "tests.training.zero_worker"]
    return [
        subprocess.Popen([*command, str(rank), str(count), str(folder)], stderr=(folder / f"{rank}.err").open("w"))
        for rank in range(count)
    ]


def main(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), count), rank=rank, world_size=count)
    processes._here = processes.Processes(rank, count, rank)
    found = {}
    for key, case in cases(count).items():
        found[key] = case(folder)
        if rank == 0:
            print(count, key, flush=True)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def cases(count: int) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """By name; `single` runs them too, alone."""
    from functools import partial

    found: dict[str, Callable] = {}
    for name in ENGINES:
        found[f"toy {name}"] = partial(toy, name)
    for name in STAGES:
        found[f"disjoint {name}"] = partial(disjoint, name)
        found[f"instructions {name}"] = partial(disjoint, name, sources=["instructions"])
        found[f"broken {name}"] = partial(disjoint, name, broken=["captions"])
        found[f"idle {name}"] = partial(idle, name)
        found[f"passed on {name}"] = partial(passed_on, name)
        found[f"taken over {name}"] = partial(taken_over, name)
    for host in ("llama_gqa", "v2 qwen3", "v2_lora llama_bias"):
        for name in ("zero2", "zero3"):
            found[f"{host} {name}"] = partial(whole_assistant, name, host=host)
    for name in STAGES:
        for checkpointing in (False, True):
            for kind, sources in (("joint", ["instructions", "captions"]), ("alone", ["instructions"])):
                found[f"{kind} {checkpointing} {name}"] = partial(
                    whole_assistant, name, host="v2 llama_gqa", groups=DISJOINT, checkpointing=checkpointing, sources=sources
                )
        found[f"bfloat16 {name}"] = partial(whole_assistant, name, host="v2 llama_gqa", dtype=torch.bfloat16)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
