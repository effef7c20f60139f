"""peft's AdaptionPrompt, trained as its users do: batches padded to the longest, labels in, loss out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import AdaptionPromptConfig, get_peft_model

from bench.case import BETAS, LR, WEIGHT_DECAY, Case, right_padded
from bench.contenders import plain_transformers


def model_of(case: Case) -> Any:
    """The host with the prompts and gates that all contenders have; peft has one gate a layer, and no tanh on it."""
    settings = AdaptionPromptConfig(
        task_type="CAUSAL_LM", adapter_len=case.prompt_length, adapter_layers=case.prompt_layers
    )
    model: Any = get_peft_model(plain_transformers.host_of(case), settings)
    layers = [layer.self_attn for layer in model.base_model.model.model.layers[-case.prompt_layers :]]
    with torch.no_grad():
        for layer, (values, factor) in zip(layers, case.opened(), strict=True):
            layer.adaption_prompt.copy_(values[None])
            layer.adaption_gate.fill_(factor)
    return model


def training(case: Case, model: Any = None) -> Callable[[int], float]:
    """A step with AdamW over whatever requires a gradient."""
    model = model_of(case) if model is None else model
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def step(number: int) -> float:
        batch = {name: one.to(case.device) for name, one in right_padded(case.steps[number], case.pad_id).items()}
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def generation(case: Case) -> Callable[[int], list[list[int]]]:
    return plain_transformers.generation(case, model_of(case).eval())


def loading(case: Case) -> Callable[[int], None]:
    kept = []
    return lambda number: kept.append(model_of(case))
