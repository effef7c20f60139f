"""The freshly drawn adapter of a configuration for a host."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmadapter.adapters.adapter import Adapter
from mmadapter.adapters.zero_init import EarlyGate, PromptSettings
from mmadapter.errors import InputError
from mmadapter.hosts.parts import linear_parts, lora_parts, norm_parts
from mmadapter.hosts.recipes import Host, attention_modules
from mmadapter.vision.projection import build_projection, seed_projection


def new_adapter(conf: Any, host: Host, device: Any = "cpu") -> Adapter:
    """The parts that `conf.adapter` and `conf.vision` ask for, drawn from `conf.seed`, at a point where the host acts
    as without them: prompts on its last layers, visual tokens for its first layers (V2) or for the prompts (V1), bias,
    scale, norms, LoRA.

    Raises InputError where the host has not as many layers, or no such linear layers.
    """
    settings, on_meta = conf.adapter, "meta" if str(device) == "meta" else None
    early, late = _layers(conf, len(attention_modules(host)))
    shape = _prompt_settings(settings, host)
    generator = torch.Generator().manual_seed(conf.seed)
    projection = _projection(conf, shape.width, on_meta, generator)
    adapter = Adapter.on_last_layers(
        shape,
        late,
        projection,
        None if on_meta else generator,
        on_meta,
        early={index: EarlyGate(shape, on_meta) for index in early},
        linears=linear_parts(host, settings.bias, settings.scale, settings.scale_on, on_meta),
        norms=norm_parts(host, settings.norms),
        prompt_projection=settings.prompt_projection,
    )
    if settings.lora.rank:
        adapter.add_lora(lora_parts(host, settings.lora.rank, settings.lora.alpha, settings.lora.on, generator))
    return adapter if on_meta else adapter.to(device)


def _layers(conf: Any, count: int) -> tuple[range, range]:
    """The layers that get visual tokens, and those that get prompts."""
    early = conf.adapter.early_layers if conf.vision.enabled else 0
    if early + conf.adapter.layers > count:
        raise InputError(
            f"adapter.early_layers={early} and adapter.layers={conf.adapter.layers} need {early + conf.adapter.layers} "
            f"layers, but the host has {count}. Set adapter.layers={max(count - early, 0)} or less."
        )
    return range(early), range(count - conf.adapter.layers, count)


def _prompt_settings(settings: Any, host: Host) -> PromptSettings:
    return PromptSettings(
        prompt_length=settings.prompt_length,
        width=host.config.hidden_size,
        heads=host.config.num_attention_heads,
        gate=settings.gate,
        gate_per=settings.gate_per,
        attention=settings.attention,
        prompt_std=settings.prompt_std,
        gate_factor=settings.gate_factor,
    )


def _projection(conf: Any, width: int, on_meta: str | None, generator: torch.Generator) -> nn.Module | None:
    """The visual projection for what the image encoder gives; None for text only."""
    if not conf.vision.enabled:
        return None
    shape = conf.adapter.projection
    projection = build_projection(
        shape.kind,
        conf.vision.feature_shape()[-1],
        width,
        hidden=shape.hidden,
        tokens=shape.tokens,
        blocks=shape.blocks,
        heads=shape.heads,
        device=on_meta,
    )
    if on_meta is None:
        seed_projection(projection, generator)
    return projection
