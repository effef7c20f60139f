"""An adapter's parts worked into the host's own weights: the same function in a plain model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.hosts.calls import Place
from mmadapter.hosts.families import ATTENTION, Host, attention_modules, family_of
from mmadapter.hosts.places import HostPlaces
from mmadapter.methods.adapter import Adapter, Method


@torch.no_grad()
def fold(host: Host, adapter: Adapter, dtype: torch.dtype | None = None) -> Host:
    """Work the parts of `adapter` that have a `fold` into the weights of `host`, in place, and give the host back.

    Parts fold from the inside out: LoRA into W, then bias and scale (LLaMA-Adapter V2, equations 1 and 2). Computed in
    float32, module by module, and rounded once, to `dtype` (None: what each parameter has).

    The host then is a plain `transformers` model: `save_pretrained` writes it whole. The adapter keeps its other
    methods; host and adapter together compute what they did before, within rounding. Other adapters of the same host no
    longer fit it.

    Raises InputError, before anything is changed, where the host's configuration cannot hold a trained bias, and where
    prompts pass the frozen projections (through=base) although the folded ones differ; and for a weight that is beyond
    `dtype` or in no plain layer (quantised).
    """
    places = HostPlaces(host)
    folded = folded_methods(adapter)
    kept = {(layer, place) for name in adapter if name not in folded for layer, place, _ in _placed(adapter[name])}
    folding = {place: parts for place, parts in adapter.parts.items() if place not in kept}
    # Whatever cannot be folded is refused here.
    _refuse_prompts_on_other_weights(host, adapter)
    for (layer, name), linear in places.linears().items():
        if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
            raise InputError(
                f"Layer {layer}, {name} of this host is a {type(linear).__name__}, in which nothing can be folded. "
                "Use the host that is not quantised."
            )
    switches = _bias_switches(places, folding)
    # The plain modules with room for biases, and the parts in them.
    for place in [*places.linears(), *places.norms(final=True)]:
        if place not in kept:
            places.put(*place, places.module(*place))
    _make_room_for_biases(host, switches)
    for place, parts in folding.items():
        module = places.module(*place)
        for name, value in _folded(module, parts).items():
            if (own := getattr(module, name)) is not None:  # a bias without a place is zero
                own.data = _rounded(value, dtype or own.dtype).to(own.device)
    for parameter in host.parameters():  # not the buffers: rotary frequencies stay in float32
        parameter.data = _rounded(parameter.data, dtype or parameter.dtype)
    for name in folded:
        del adapter[name], adapter.settings[name]
    for place in folding:
        del adapter.parts[place]
    return host


def folded_methods(adapter: Adapter) -> list[str]:
    """The names of the methods that end up in the host's weights."""
    placed = {name: [part for _, _, part in _placed(method)] for name, method in adapter.items()}
    return [name for name, parts in placed.items() if parts and all(hasattr(part, "fold") for part in parts)]


def _placed(method: nn.Module) -> list[tuple[int, str, nn.Module]]:
    return list(method.placed()) if isinstance(method, Method) else []


def _folded(module: nn.Module, parts: Sequence[nn.Module]) -> dict[str, Tensor]:
    """A frozen module's tensors in float32 with its parts in them; a linear layer's always with a bias."""
    tensors = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    if isinstance(module, nn.Linear):
        tensors.setdefault("bias", tensors["weight"].new_zeros(module.out_features))
    for part in parts:
        tensors = part.fold(tensors)  # type: ignore[operator]
    return tensors


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype)
    if not rounded.isfinite().all():
        raise InputError(
            f"A weight is not finite in {str(dtype).removeprefix('torch.')} (the largest is "
            f"{float(value.abs().max()):.4g}). Choose bfloat16 or float32."
        )
    return rounded


# Room for biases: what `transformers` itself builds from a configuration decides, not a table of families.


def _bias_switches(places: HostPlaces, folding: Mapping[Place, Sequence[nn.Module]]) -> list[str]:
    """The settings of the host's configuration to switch on, so that its linear layers hold the trained biases."""
    without = {place: linear for place, linear in places.linears().items() if linear.bias is None}
    needed = {place for place in without if place in folding and _folded(without[place], folding[place])["bias"].any()}
    if not needed:
        return []
    settings = places.host.config.to_dict().items()
    switches = [name for name, value in settings if name.endswith("bias") and value is False]
    chosen = [name for name in switches if needed & _biased(places.host, [name])]
    if missing := needed - _biased(places.host, chosen):
        raise _cannot_hold(places, missing, _biased(places.host, switches))
    return chosen


def _biased(host: Host, switches: Sequence[str]) -> set[Place]:
    """The linear layers of the decoder blocks that have a bias when `switches` are on."""
    shape = HostPlaces(_shape_of(host, switches))
    return {place for place, linear in shape.linears().items() if linear.bias is not None}


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


def _cannot_hold(places: HostPlaces, missing: set[Place], holdable: set[Place]) -> InputError:
    def listed(found: Iterable[Place]) -> str:
        return ", ".join(name for name in places.family.linears if name in {name for _, name in found})

    holding, layers = listed(holdable), len({layer for layer, _ in missing})
    return InputError(
        f"The trained bias of {listed(missing)} ({layers} layers) has no place in a {places.model_type} model: "
        f"{type(places.host).__name__} of `transformers` has no bias there and no setting for one"
        f"{f' (it can have one on {holding})' if holding else ''}. Without them it would be another model. "
        f"Use the adapter on its own host, or train with adapter.bias_scale.bias=[{holding.replace(' ', '')}]."
    )


def _refuse_prompts_on_other_weights(host: Host, adapter: Adapter) -> None:
    """Prompts that pass the frozen projections fit the folded host only where trained parts do not change these."""
    probe = torch.randn(1, 2, host.config.hidden_size, generator=torch.Generator().manual_seed(0))
    differing = []
    for (layer, place), parts in sorted(adapter.parts.items()):
        if place == ATTENTION and any(getattr(part, "through", "adapted") == "base" for part in parts):
            module = attention_modules(host)[layer]
            project, hidden = family_of(host.config.model_type).project, probe.to(next(module.parameters()))
            frozen = project(module, hidden)
            with host.adapter_slot.during(adapter.call()):
                adapted = project(module, hidden)
            differing += [layer] if not all(map(torch.equal, frozen, adapted)) else []
    if differing:
        raise InputError(
            "Prompts or visual tokens of this adapter pass the frozen projections (through=base), but those of layers "
            f"{differing[0]} to {differing[-1]} have trained parts in what makes keys and values: in the folded model "
            "prompts would pass the folded weights, which is another model. Use the adapter on its own host, or "
            "train with adapter.prompts.through=adapted, or without trained parts there."
        )
