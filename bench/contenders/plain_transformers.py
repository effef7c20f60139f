"""`transformers` alone, with everything frozen: what its own code costs on batches padded to the longest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bench.case import Case, left_padded, right_padded


def host_of(case: Case) -> Any:
    dtype = getattr(torch, case.dtype)
    host: Any = AutoModelForCausalLM.from_pretrained(case.host, dtype=dtype, attn_implementation="sdpa")
    return host.to(case.device).requires_grad_(False).eval()


def training(case: Case) -> Callable[[int], float]:
    """Forward and backward as far down as V1's prompts stand; nothing is trained, so no optimizer."""
    host = host_of(case)

    def begin_graph(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].detach().requires_grad_(), *inputs[1:])

    host.model.layers[case.depth - case.prompt_layers].register_forward_pre_hook(begin_graph)

    def step(number: int) -> float:
        batch = {name: one.to(case.device) for name, one in right_padded(case.steps[number], case.pad_id).items()}
        loss = host(**batch, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    return step


def generation(case: Case, model: Any = None) -> Callable[[int], list[list[int]]]:
    """The new tokens of all prompts, as one batch, greedy."""
    model = host_of(case) if model is None else model
    settings = GenerationConfig(
        max_new_tokens=case.new_tokens, do_sample=False, pad_token_id=case.pad_id, eos_token_id=None
    )

    def answer(number: int) -> list[list[int]]:
        batch = {name: one.to(case.device) for name, one in left_padded(case.prompt_ids, case.pad_id).items()}
        with torch.no_grad():
            tokens = model.generate(**batch, generation_config=settings)
        return tokens[:, batch["input_ids"].shape[1] :].tolist()

    return answer


def loading(case: Case) -> Callable[[int], None]:
    kept = []
    return lambda number: kept.append(host_of(case))
