"""What several forked processes do for test_zero.py: one engine case after the other; starting takes seconds."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmadapter.data.tokens import SampleEncoder
from mmadapter.distributed.deepspeed import end_engines, gathered
from mmadapter.hosts.load import load_host
from mmadapter.hosts.settings import GenerationConf
from mmadapter.hosts.sharded import Sharding
from mmadapter.training.settings import EngineConf
from tests.distributed.several import here, joined
from tests.families import tiny_host
from tests.models import model_on, picture, sample
from tests.training.zero_cases import (
    DISJOINT,
    ENGINES,
    STAGES,
    TOGETHER,
    VISUAL_ROLES,
    disjoint,
    engine_of,
    groups_of,
    idle,
    outcome,
    own_part,
    passed_on,
    run_steps,
    taken_over,
    toy,
)

LR = 1e-3  # a real host makes more and more of what rounding does to a step
COLOURS = ["red", "blue", "green", "small", "large"]


def work(count: int, folder: Path, which: str, patience: float) -> None:
    """All cases in this process; the first one writes FOLDER/found.pt. After `patience` s it says where it hangs."""
    faulthandler.dump_traceback_later(patience, exit=True)
    found = {}
    with joined():
        for number in range(4):
            here().decide(lambda number=number: str(picture(folder, number)))
        for key, case in cases(count, which).items():
            found[key] = case(folder)
            end_engines()
        if here().is_first:
            torch.save(found, folder / "found.pt")


def cases(count: int, which: str) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """By name, each ending in its engine's; `few` are those that a test run can always afford."""
    if which == "few" and count > 2:
        kinds = {"toy": toy, "disjoint": disjoint, "instructions": partial(disjoint, sources=["instructions"])}
        return {f"{kind} {name}": partial(case, name) for kind, case in kinds.items() for name in ENGINES[1:]}
    found: dict[str, Callable] = {f"toy {name}": partial(toy, name) for name in ENGINES}
    small = {
        "disjoint": disjoint,
        "instructions": partial(disjoint, sources=["instructions"]),
        "broken": partial(disjoint, broken=["captions"]),
        "idle": idle,
        "passed on": passed_on,
        "taken over": taken_over,
    }
    found |= {f"{kind} {name}": partial(case, name) for kind, case in small.items() for name in ENGINES}
    if which == "few" and count == 1:
        return found
    joint = partial(whole_model, host="v2 llama_gqa", groups=DISJOINT, checkpointing=True, shared_early=True)
    alone = partial(joint, sources=["instructions"])
    if which == "all":
        return found | longer_cases(joint, alone)
    found |= {"llama_gqa zero2": partial(whole_model, "zero2", host="llama_gqa")}
    return found | {
        "joint recomputed zero3": partial(joint, "zero3"),
        "joint kept zero3": partial(joint, "zero3", checkpointing=False),
        "alone recomputed zero3": partial(alone, "zero3"),
    }


def longer_cases(joint: Callable, alone: Callable) -> dict[str, Callable]:
    """More hosts, and joint training at all stages with and without checkpointing."""
    found: dict[str, Callable] = {}
    for name in STAGES:
        found[f"bfloat16 {name}"] = partial(whole_model, name, host="v2 llama_gqa", dtype=torch.bfloat16)
        for kind, case in (("joint", joint), ("alone", alone)):
            found[f"{kind} recomputed {name}"] = partial(case, name)
            found[f"{kind} kept {name}"] = partial(case, name, checkpointing=False)
    for host in ("llama_gqa", "v2 qwen3", "v2_lora llama_bias"):
        found |= {f"{host} {name}": partial(whole_model, name, host=host) for name in ("zero2", "zero3")}
    return found


def question(model, folder: Path, source: str, number: int):
    """A question about a colour; of two captions one has a picture, so that process 0 of 2 has all of them."""
    image = folder / f"{number % 4}.png" if source == "captions" and number % 2 == 0 else None
    item = sample("what colour is the circle", COLOURS[number % 5] + " ." * (number % 3), image, str(number), source)
    return SampleEncoder(model.tokenizer, 64).encode(item)


def whole_model(
    name: str,
    folder: Path,
    host: str,
    groups: dict = TOGETHER,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    sources: Sequence[str] = ("instructions", "captions"),
    shared_early: bool = False,
) -> dict[str, Any]:
    """A real model on a tiny host, with pictures, validation and answers in between."""
    loaded = loaded_host(name, host, folder) if shared_early else None
    model = model_on(host, host=loaded, activation_checkpointing=checkpointing)
    trained = {id(item.parameter) for item in model.trainable_parameters()}
    base = {name: p for name, p in model.host.named_parameters() if id(p) not in trained}
    if dtype != torch.float32:
        for parameter in base.values():
            parameter.data = parameter.data.to(dtype)
    with gathered(base.values()):
        before = {name: parameter.detach().clone() for name, parameter in base.items()}
    model.train()
    chosen = {group: learns for group, learns in groups.items() if learns is None or learns[0] in sources}
    frozen = VISUAL_ROLES if groups is DISJOINT and "visual" not in chosen else ()
    for item in model.trainable_parameters():
        item.parameter.requires_grad_(item.role not in frozen)
    engine = engine_of(name, model, groups_of(model, chosen, frozen))

    def micro_batches(step: int) -> list[list]:
        return [
            [question(model, folder, source, 10 * step + number) for number in range(first, last)]
            for source in sources
            for first, last in ((0, 4), (4, 7))
        ]

    results = run_steps(name, engine, micro_batches, range(2), model.features, LR)
    stored = sum(stored_bytes(parameter) for parameter in base.values())
    model.eval()
    validation = here().sum([engine.loss_sum(own_part(m, name == "single", model.features)) for m in micro_batches(9)])
    texts = [question(model, folder, "captions", n).sample for n in range(2)]
    answers = model.answer(texts, GenerationConf(max_new_tokens=4))
    model.train()
    results += run_steps(name, engine, micro_batches, range(2, 4), model.features, LR)
    facts = {"validation": validation, "answers": answers, "bytes": here().gather(stored)}
    return outcome(engine, results) | facts | {"base unchanged": unchanged(base, before)}


def loaded_host(name: str, host: str, folder: Path):
    """At stage 3 the host as a run loads it, shared out from the start (collective); else None."""
    engine = EngineConf(name)
    if engine.stage < 3:
        return None
    family = host.rpartition(" ")[2]
    own = folder / family

    def save() -> None:
        if not own.exists():
            tiny_host(family).save_pretrained(own)

    here().decide(save)
    return load_host(own, torch.float32, sharding=Sharding(engine.offload))


def stored_bytes(parameter) -> int:
    """What this process holds of a parameter."""
    own = parameter.data.numel() * parameter.element_size()
    part = getattr(parameter, "ds_tensor", None)
    return own if part is None else own + part.numel() * part.element_size()


def unchanged(base: dict[str, Any], before: dict[str, torch.Tensor]) -> bool:
    """Whether all frozen tensors are what they were, bit by bit."""
    with gathered(base.values()):
        return all(torch.equal(base[name], tensor) for name, tensor in before.items())
