"""The settings that build an adapter's parts again, read off its card: what the tensors' names and shapes tell, and
what they do not (store.py writes it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmadapter.config.adapter import AdapterConf, LoraConf, ProjectionConf
from mmadapter.errors import InputError

Card = Mapping[str, Any]
PROMPT_KEYS = ("prompt_length", "gate", "gate_per", "attention", "prompt_projection")


def adapter_conf(card: Card) -> AdapterConf:
    """The `adapter` settings of a card's adapter. Raises InputError where one of them would need two values."""
    told, names = card["adapter"], list(card["tensors"])
    conf = AdapterConf(layers=len(told.get("layers", ())), early_layers=len(told.get("early_layers", ())))
    for key in PROMPT_KEYS:
        if key in told:
            setattr(conf, key, told[key])
    conf.gate_factor = any(name.startswith("layers.") and name.endswith(".factor") for name in names)
    conf.bias = _kinds(names, "linears", ".bias")
    conf.scale = _kinds(names, "linears", ".scale")
    conf.scale_on = _single(told, "scale_on", conf.scale_on)
    normed = {name.split(".")[1] for name in names if name.startswith("norms.")}
    conf.norms = "none" if not normed else ("all" if "-1" in normed else "blocks")
    conf.lora = _lora(card)
    conf.projection = _projection(card)
    return conf


def _lora(card: Card) -> LoraConf:
    kinds = _kinds(card["tensors"], "lora", ".down.weight")
    if not kinds:
        return LoraConf()
    rank = next(shape[0] for name, shape in card["tensors"].items() if _is_part(name, "lora", ".down.weight"))
    return LoraConf(rank, round(_single(card["adapter"], "lora_factor", 1.0) * rank), kinds)


def _projection(card: Card) -> ProjectionConf:
    """The visual projection's kind and sizes; the defaults for an adapter without pictures."""
    prefix = "visual_projection."
    shapes = {n.removeprefix(prefix): shape for n, shape in card["tensors"].items() if n.startswith(prefix)}
    if "queries" in shapes:
        tokens, hidden = shapes["queries"]
        blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        return ProjectionConf("query_transformer", hidden, tokens, blocks, card["adapter"]["projection_heads"])
    if "widen.weight" in shapes:
        outputs, hidden = shapes["widen.weight"]
        return ProjectionConf("mlp", hidden, outputs // card["host"]["width"])
    return ProjectionConf()


def _kinds(names: Any, family: str, end: str) -> list[str]:
    """The kinds of modules that have a tensor of this ending, such as q, k: FAMILY.LAYER.KIND.bias."""
    return list(dict.fromkeys(name.split(".")[2] for name in names if _is_part(name, family, end)))


def _is_part(name: str, family: str, end: str) -> bool:
    return name.startswith(f"{family}.") and name.endswith(end)


def _single(told: Mapping[str, Any], key: str, default: Any) -> Any:
    values = told.get(key) or [default]
    if len(values) > 1:
        raise InputError(f"adapter.json: {key} has several values, {values}; an adapter is built with one for all.")
    return values[0]
