"""What an adapter is and what it fits: the facts on its card, by which another assistant is accepted or refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from mmadapter import __version__
from mmadapter.assistant import Assistant

# What changes without changing the host: where it lay, which version wrote it, the type its weights are stored in.
_NOT_IDENTITY = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}


def host_identity(assistant: Assistant) -> dict[str, Any]:
    """What an adapter fits: the host's shape, and digests of its configuration and its tokenizer."""
    config = assistant.host.config
    heads = config.num_attention_heads
    return {
        "model_type": config.model_type,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "vocabulary": config.vocab_size,
        "config_digest": _digest(_host_settings(assistant)),
        "tokenizer_digest": _digest(sorted(assistant.tokenizer.get_vocab().items())),
    }


def vision_identity(assistant: Assistant) -> dict[str, Any] | None:
    """What the visual projection fits; None for an adapter without images."""
    if assistant.vision is None or assistant.adapter.visual_projection is None:
        return None
    return assistant.vision.identity()


def _encoder_settings(assistant: Assistant) -> dict[str, Any] | None:
    """What builds the image encoder again, besides its identity; `model` is null where a folder says what it is."""
    if vision_identity(assistant) is None:
        return None
    assert assistant.vision is not None
    settings: Any = assistant.vision.settings
    model = None if settings.folder is not None else settings.model
    return {"model": model, "quick_gelu": settings.quick_gelu, "tokens": settings.tokens}


def _host_settings(assistant: Assistant) -> dict[str, Any]:
    """The host's configuration as its file has it: the form in memory differs between versions of `transformers`."""
    if assistant.folder is None:
        settings = assistant.host.config.to_dict()
    else:
        settings = json.loads((assistant.folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if name not in _NOT_IDENTITY}


def adapter_settings(assistant: Assistant) -> dict[str, Any]:
    """What the tensors' names and shapes do not tell, and the method's name."""
    adapter = assistant.adapter
    found: dict[str, Any] = {"method": "v2" if adapter.early or adapter.linears or adapter.norms else "v1"}
    if layers := adapter.by_index():
        settings = next(iter(layers.values())).settings
        found["layers"] = sorted(layers)
        found |= {name: getattr(settings, name) for name in ("prompt_length", "gate", "gate_per", "attention")}
    if adapter.early:
        found["early_layers"] = sorted(map(int, adapter.early))
        shape: Any = next(iter(adapter.early.values())).settings
        found |= {name: getattr(shape, name) for name in ("gate", "gate_per")}  # the same as the prompts'
    if adapter.linears or adapter.norms or adapter.lora:
        found["prompt_projection"] = adapter.prompt_projection
    linears, pairs = _parts(adapter.linears), _parts(adapter.lora)
    if scales := {part.scale_on for part in linears if part.scale is not None}:
        found["scale_on"] = sorted(scales)
    if factors := {pair.factor for pair in pairs}:
        found["lora_factor"] = sorted(factors)
    if heads := getattr(adapter.visual_projection, "heads", None):
        found["projection_heads"] = heads
    return found


def _parts(by_layer: Any) -> list[Any]:
    return [part for kinds in by_layer.values() for part in kinds.values()]


def card_of(assistant: Assistant, training: dict[str, Any] | None) -> dict[str, Any]:
    """What an adapter's card says beside its tensors; `training` is a summary."""
    import transformers

    return {
        "format": 1,
        "adapter": adapter_settings(assistant),
        "host": host_identity(assistant),
        "vision": vision_identity(assistant),
        "encoder": _encoder_settings(assistant),
        "max_tokens": assistant.max_tokens,
        "versions": {"mmadapter": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "training": training or {},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
