"""Adapter folders and settings of version 0.1 (format 1): their names translated into today's. The only compatibility.

Version 0.1 had one flat list of settings, and its card named only what the tensors' shapes do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError

Card = dict[str, Any]

# Beginning of a tensor's name -> today's.
_TENSORS = {
    "layers": "prompts",
    "visual_projection": "projection",
    "early": "early_fusion",
    "linears": "bias_scale",
    "norms": "norms",
    "lora": "lora",
}
# Flat setting -> today's places.
RENAMED: dict[str, tuple[str, ...]] = {
    "prompt_length": ("prompts.length",),
    "layers": ("prompts.layers",),
    "gate": ("prompts.gate", "early_fusion.gate"),
    "gate_per": ("prompts.gate_per", "early_fusion.gate_per"),
    "gate_factor": ("prompts.gate_factor",),
    "attention": ("prompts.attention",),
    "prompt_std": ("prompts.std",),
    "prompt_projection": ("prompts.through", "early_fusion.through"),
    "early_layers": ("early_fusion.layers",),
    "bias": ("bias_scale.bias",),
    "scale": ("bias_scale.scale",),
    "scale_on": ("bias_scale.scale_on",),
    "norms": ("norms.which",),
}


def tensor_name(old: str) -> str:
    """layers.3.prompt -> prompts.3.prompt, and so on."""
    family, _, rest = old.partition(".")
    return f"{_TENSORS.get(family, family)}.{rest}"


def settings(old: Mapping[str, Any], pictures: bool) -> Card:
    """The `adapter` settings of a run of version 0.1, as a mapping of today's; unknown keys stay as they are."""
    made: Card = {"prompts": {}, "early_fusion": {}, "bias_scale": {"bias": [], "scale": []}, "norms": {}}
    for key, value in old.items():
        for target in RENAMED.get(key, ()):
            method, _, name = target.partition(".")
            made[method][name] = value
    present = {
        "prompts": old.get("layers", 30) > 0,
        "early_fusion": pictures and old.get("early_layers", 0) > 0,
        "bias_scale": bool(old.get("bias") or old.get("scale")),
        "norms": old.get("norms", "none") != "none",
    }
    found = {method: made[method] for method, there in present.items() if there}
    if pictures:
        found["projection"] = dict(old.get("projection", {}))
    if (lora := old.get("lora", {})).get("rank"):
        found["lora"] = dict(lora)
    return found | {
        key: value for key, value in old.items() if key not in RENAMED and key not in ("projection", "lora")
    }


def is_old(adapter: Mapping[str, Any]) -> bool:
    """Whether these `adapter` settings are those of version 0.1."""
    return "prompt_length" in adapter or not isinstance(adapter.get("norms"), Mapping | None)


def card(old: Card, folder: Path) -> Card:
    """A card of format 1 as one of format 2. Raises InputError where a setting would need two values."""
    told, shapes = old["adapter"], old["tensors"]
    flat: Card = {"layers": len(told.get("layers", ())), "early_layers": len(told.get("early_layers", ()))}
    flat |= {key: told[key] for key in ("prompt_length", "gate", "gate_per", "attention") if key in told}
    flat["prompt_projection"] = told.get("prompt_projection", "adapted")
    flat["gate_factor"] = any(name.startswith("layers.") and name.endswith(".factor") for name in shapes)
    flat |= {role: _kinds(shapes, "linears", f".{role}") for role in ("bias", "scale")}
    flat["scale_on"] = _single(folder, told, "scale_on", "output")
    normed = {name.split(".")[1] for name in shapes if name.startswith("norms.")}
    flat["norms"] = "none" if not normed else "all" if "-1" in normed else "blocks"
    flat["lora"] = _lora(folder, told, shapes)
    flat["projection"] = _projection(told, shapes, old["host"]["width"])
    pictures = any(name.startswith("visual_projection.") for name in shapes)
    tensors = {tensor_name(name): shape for name, shape in shapes.items()}
    made = old | {"format": 2, "adapter": settings(flat, pictures), "tensors": tensors}
    if (vision := old.get("vision")) is not None:  # the card had the encoder's settings in two places
        encoder = {"encoder": "open_clip", "model": None, "quick_gelu": None, "tokens": "class"}
        encoder |= {key: vision[key] for key in ("layers", "project_scales", "channel_order")}
        made["encoder"] = encoder | (old.get("encoder") or {})
    return made


def _lora(folder: Path, told: Card, shapes: Card) -> Card:
    kinds = _kinds(shapes, "lora", ".down.weight")
    if not kinds:
        return {}
    rank = next(
        shape[0] for name, shape in shapes.items() if name.startswith("lora.") and name.endswith(".down.weight")
    )
    return {"rank": rank, "alpha": round(_single(folder, told, "lora_factor", 1.0) * rank), "on": kinds}


def _projection(told: Card, shapes: Card, width: int) -> Card:
    prefix = "visual_projection."
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    if "queries" in own:
        tokens, hidden = own["queries"]
        blocks = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
        sizes = {"hidden": hidden, "tokens": tokens, "blocks": blocks, "heads": told["projection_heads"]}
        return {"kind": "query_transformer", **sizes}
    if "widen.weight" in own:
        outputs, hidden = own["widen.weight"]
        return {"kind": "mlp", "hidden": hidden, "tokens": outputs // width}
    return {}


def _kinds(names: Any, family: str, end: str) -> list[str]:
    """The kinds of modules that have a tensor of this ending, such as q, k: FAMILY.LAYER.KIND.bias."""
    chosen = [name for name in names if name.startswith(f"{family}.") and name.endswith(end)]
    return list(dict.fromkeys(name.split(".")[2] for name in chosen))


def _single(folder: Path, told: Card, key: str, default: Any) -> Any:
    values = told.get(key) or [default]
    if len(values) > 1:
        raise InputError(f"{folder}/adapter.json: {key} has several values, {values}; an adapter has one for all.")
    return values[0]
