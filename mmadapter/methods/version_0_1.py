"""Adapter folders and settings of version 0.1 (format 1): their names translated into today's. The only compatibility.

Version 0.1 had one flat list of settings, and its card named only what the tensors' shapes do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def card(old: Card) -> Card:
    """A card of format 1 as one of format 2: what it did not say follows from the tensors' names and shapes."""
    told, shapes = old["adapter"], old["tensors"]

    def kinds(family: str, end: str) -> list[str]:
        """The kinds of modules that have a tensor of this ending, such as q, k: FAMILY.LAYER.KIND.bias."""
        chosen = [name for name in shapes if name.startswith(f"{family}.") and name.endswith(end)]
        return list(dict.fromkeys(name.split(".")[2] for name in chosen))

    # The host's parts.
    flat: Card = {"layers": len(told.get("layers", ())), "early_layers": len(told.get("early_layers", ()))}
    flat |= {key: told[key] for key in ("prompt_length", "gate", "gate_per", "attention") if key in told}
    flat["prompt_projection"] = told.get("prompt_projection", "adapted")
    flat["gate_factor"] = any(name.startswith("layers.") and name.endswith(".factor") for name in shapes)
    flat |= {role: kinds("linears", f".{role}") for role in ("bias", "scale")}
    flat["scale_on"] = (told.get("scale_on") or ["output"])[0]
    normed = {name.split(".")[1] for name in shapes if name.startswith("norms.")}
    flat["norms"] = "none" if not normed else "all" if "-1" in normed else "blocks"
    if on := kinds("lora", ".down.weight"):
        rank = next(shape for name, shape in shapes.items() if name.startswith("lora.") and ".down.weight" in name)[0]
        flat["lora"] = {"rank": rank, "alpha": round((told.get("lora_factor") or [1.0])[0] * rank), "on": on}
    # The visual projection.
    own = {name.partition(".")[2]: shape for name, shape in shapes.items() if name.startswith("visual_projection.")}
    if "queries" in own:
        tokens, hidden = own["queries"]
        blocks = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
        sizes = {"hidden": hidden, "tokens": tokens, "blocks": blocks, "heads": told["projection_heads"]}
        flat["projection"] = {"kind": "query_transformer", **sizes}
    elif own:
        outputs, hidden = own["widen.weight"]
        flat["projection"] = {"kind": "mlp", "hidden": hidden, "tokens": outputs // old["host"]["width"]}
    tensors = {tensor_name(name): shape for name, shape in shapes.items()}
    made = old | {"format": 2, "adapter": settings(flat, bool(own)), "tensors": tensors}
    if (vision := old.get("vision")) is not None:  # the card had the encoder's settings in two places
        encoder = {"encoder": "open_clip", "model": None, "quick_gelu": None, "tokens": "class"}
        encoder |= {key: vision[key] for key in ("layers", "project_scales", "channel_order")}
        made["encoder"] = encoder | (old.get("encoder") or {})
    return made
