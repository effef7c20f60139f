"""An adapter's bias, scale, norms and LoRA worked into the host's own weights: the same function in a plain model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.adapters.adapter import Adapter
from mmadapter.adapters.linear import LinearShift
from mmadapter.errors import InputError
from mmadapter.hosts.adapted import AdaptedModule
from mmadapter.hosts.parts import LoraPair
from mmadapter.hosts.places import Place, linear_places, norm_places
from mmadapter.hosts.recipes import Host, attention_modules, recipe_for

FOLDED = ("linears", "norms", "lora")  # the adapter's families that end up in the host's weights
PlaceKey = tuple[int, str]  # host layer, kind of module in it


@torch.no_grad()
def fold(host: Host, adapter: Adapter, dtype: torch.dtype | None = None) -> Host:
    """Work `adapter`'s linears, norms and LoRA into the weights of `host`, in place, and give the host back.

    y = s * ((W + LoRA) x + b_host + b) becomes W' = s (W + LoRA), b' = s (b_host + b); with the scale on the input
    W' = (W + LoRA) s, b' = b_host + b (LLaMA-Adapter V2, equations 1 and 2). Trained norm parameters replace the
    host's. Computed in float32, layer by layer, and rounded once, to `dtype` (None: what each parameter has).

    The host then is a plain `transformers` model: `save_pretrained` writes it whole. The adapter keeps its prompts,
    gates and visual projection; host and adapter together compute what they did before, within rounding. Other
    adapters of the same host no longer fit it.

    Raises InputError, before anything is changed, where the host's configuration cannot hold a trained bias, and where
    prompts pass the frozen projections (prompt_projection "base") although the folded ones differ; and for a weight
    that is beyond `dtype` or in no plain layer (quantised).
    """
    if adapter.prompt_projection == "base":
        _refuse_prompts_on_other_weights(host, adapter)
    _refuse_other_layers(host)
    switches = _bias_switches(host, adapter)
    for places in (linear_places(host), norm_places(host, final=True)):
        for _, place in _each(places):
            place.put(_plain(place.module))
    _make_room_for_biases(host, switches)
    for (index, kind), place in _each(linear_places(host)):
        shift, lora = adapter.part("linears", index, kind), adapter.part("lora", index, kind)
        _fold_linear(place.module, shift, lora, dtype)  # type: ignore[arg-type]
    for (index, kind), place in _each(norm_places(host, final=True)):
        if (trained := adapter.part("norms", index, kind)) is not None:
            for name, parameter in trained.named_parameters():
                _put(place.module, name, parameter, dtype)
    for parameter in host.parameters():  # not the buffers: rotary frequencies stay in float32
        parameter.data = _rounded(parameter.data, dtype or parameter.dtype)
    for family in FOLDED:
        setattr(adapter, family, nn.ModuleDict())
    return host


def _fold_linear(linear: Any, shift: LinearShift | None, lora: LoraPair | None, dtype: torch.dtype | None) -> None:
    weight, bias = linear.weight.float(), None if linear.bias is None else linear.bias.float()
    if lora is not None:
        weight = weight + lora.factor * (lora.up.weight @ lora.down.weight)
    if shift is not None and shift.bias is not None and bias is not None:  # no room: the trained bias is zero
        bias = bias + shift.bias
    if shift is not None and shift.scale is not None and shift.scale_on == "output":
        weight, bias = weight * shift.scale[:, None], None if bias is None else bias * shift.scale
    elif shift is not None and shift.scale is not None:
        weight = weight * shift.scale
    _put(linear, "weight", weight, dtype)
    if bias is not None:
        _put(linear, "bias", bias, dtype)


def _put(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype | None) -> None:
    own = getattr(module, name)
    own.data = _rounded(value.detach(), dtype or own.dtype).to(own.device)


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype)
    if not rounded.isfinite().all():
        raise InputError(
            f"A weight is not finite in {str(dtype).removeprefix('torch.')} (the largest is "
            f"{float(value.abs().max()):.4g}). Choose bfloat16 or float32."
        )
    return rounded


def _plain(module: Any) -> nn.Module:
    """The frozen module itself, without what was put around it and without `peft`'s layer."""
    module = module.base if isinstance(module, AdaptedModule) else module
    return getattr(module, "base_layer", module)


def _each(places: dict[int, dict[str, Place]]) -> Iterator[tuple[PlaceKey, Place]]:
    for index, kinds in places.items():
        for kind, place in kinds.items():
            yield (index, kind), place


def _refuse_other_layers(host: Host) -> None:
    for (index, kind), place in _each(linear_places(host)):
        if type(linear := _plain(place.module)) is not nn.Linear or not linear.weight.is_floating_point():
            raise InputError(
                f"Layer {index}, {kind} of this host is a {type(linear).__name__}, in which nothing can be folded. "
                "Use the host that is not quantised."
            )


# Room for biases: what `transformers` itself builds from a configuration decides, not a table of families.


def _bias_switches(host: Host, adapter: Adapter) -> list[str]:
    """The settings of the host's configuration to switch on, so that its linear layers hold the trained biases."""
    needed = {key for key, place in _each(linear_places(host)) if _plain(place.module).bias is None}
    needed &= {(int(index), kind) for index, kinds in adapter.linears.items() for kind in kinds}  # type: ignore[attr-defined]
    needed = {key for key in needed if _is_moved(adapter.part("linears", *key).bias, 0.0)}  # type: ignore[union-attr]
    if not needed:
        return []
    switches = [name for name, value in host.config.to_dict().items() if name.endswith("bias") and value is False]
    chosen = [name for name in switches if needed & _biased(host, [name])]
    if missing := needed - _biased(host, chosen):
        raise _cannot_hold(host, missing, _biased(host, switches))
    return chosen


def _is_moved(parameter: Any, start: float) -> bool:
    return parameter is not None and bool((parameter != start).any())


def _biased(host: Host, switches: Sequence[str]) -> set[PlaceKey]:
    """The linear layers of the decoder blocks that have a bias when `switches` are on."""
    return {
        key for key, place in _each(linear_places(_shape_of(host, switches))) if _plain(place.module).bias is not None
    }


def _shape_of(host: Host, switches: Sequence[str]) -> Host:
    """What `transformers` builds from the host's configuration with `switches` on, without weights."""
    config = copy.deepcopy(host.config)
    for name in switches:
        setattr(config, name, True)
    with torch.device("meta"):
        return type(host)(config)


def _make_room_for_biases(host: Host, switches: Sequence[str]) -> None:
    """Zero biases on every linear layer that has one under a configuration with `switches` on."""
    if not switches:
        return
    for name, linear in _shape_of(host, switches).named_modules():
        own = host.get_submodule(name)
        if isinstance(linear, nn.Linear) and linear.bias is not None and own.bias is None:
            own.bias = nn.Parameter(own.weight.new_zeros(own.out_features), requires_grad=False)
    for name in switches:
        setattr(host.config, name, True)


def _cannot_hold(host: Host, missing: set[PlaceKey], holdable: set[PlaceKey]) -> InputError:
    kinds = list(recipe_for(host.config.model_type).linears)
    lacking, holding = _listed(kinds, missing), _listed(kinds, holdable)
    layers = len({index for index, _ in missing})
    return InputError(
        f"The trained bias of {lacking} ({layers} layers) has no place in a {host.config.model_type} model: "
        f"{type(host).__name__} of `transformers` has no bias there and no setting for one"
        f"{f' (it can have one on {holding})' if holding else ''}. Without them it would be another model. "
        f"Use the adapter on its own host, or train with adapter.bias=[{holding.replace(' ', '')}]."
    )


def _listed(kinds: Iterable[str], found: set[PlaceKey]) -> str:
    return ", ".join(kind for kind in kinds if kind in {kind for _, kind in found})


# Prompts that pass the frozen projections: exact in the folded host only where these carry nothing.


def _refuse_prompts_on_other_weights(host: Host, adapter: Adapter) -> None:
    places = [linear_places(host), norm_places(host, final=False)]
    differing = []
    for index in sorted({*adapter.by_index(), *map(int, adapter.early)}):
        passed = _passed_by_prompts(host, index)
        for kind, place in (item for found in places for item in found[index].items()):
            if id(place.module) in passed and _carries(adapter, index, kind, _plain(place.module)):
                differing.append((index, kind))
    if differing:
        kinds = ", ".join(dict.fromkeys(kind for _, kind in differing))
        raise InputError(
            f"Prompts and visual tokens of this adapter pass the frozen projections (prompt_projection: base), but "
            f"{kinds} of layers {differing[0][0]} to {differing[-1][0]} carry trained parts: in the folded model they "
            "would pass the folded weights, which is another model. Use the adapter on its own host, or train with "
            "adapter.prompt_projection=adapted, or without trained parts there."
        )


def _passed_by_prompts(host: Host, index: int) -> set[int]:
    """The ids of the modules that the family's recipe calls to make keys and values of prompts."""
    module = attention_modules(host)[index]
    passed: set[int] = set()
    hooks = [part.register_forward_hook(lambda part, *_: passed.add(id(part))) for part in module.modules()]
    weight = next(module.parameters())
    try:
        recipe_for(host.config.model_type).project(module, weight.new_zeros(1, 1, host.config.hidden_size))
    finally:
        for hook in hooks:
            hook.remove()
    return passed


def _carries(adapter: Adapter, index: int, kind: str, frozen: nn.Module) -> bool:
    """Whether a trained part makes the module another function than the frozen one."""
    shift, lora, norm = (adapter.part(family, index, kind) for family in ("linears", "lora", "norms"))
    if isinstance(shift, LinearShift) and (_is_moved(shift.bias, 0.0) or _is_moved(shift.scale, 1.0)):
        return True
    if isinstance(lora, LoraPair) and _is_moved(lora.up.weight, 0.0):
        return True
    own = dict(frozen.named_parameters())
    return norm is not None and any(not torch.equal(p, own[name].float()) for name, p in norm.named_parameters())
