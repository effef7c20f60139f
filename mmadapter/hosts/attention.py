"""The attention route: every attention module of a host looks here first, and then at its own base attention.

The adapter of a call arrives as the keyword `adapter` of that call, never as state on the modules: activation
checkpointing recomputes with it, several adapters can share a host, and a host called without it is the plain host.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmadapter.adapters.zero_init import (
    PromptLayer,
    default_scaling,
    gated_prompt_attention,
    joint_prompt_scores_mask,
    repeat_rows,
)
from mmadapter.hosts.recipes import AttentionModule, Host, attention_modules, recipe_for

ROUTE = "mmadapter"


@dataclass
class PromptKeysValues:
    """Projected prompts of one layer: keys, values, and what the images add to every value (or None)."""

    keys: Tensor
    values: Tensor
    value_shift: Tensor | None
    state: tuple[int, int]  # of the prompt that was projected


@dataclass
class AdapterCall:
    """What one call of the host carries: the adapted layers and the rows' images.

    `visual` is (prompt rows, width), zero for rows without an image; None when no row has one.
    `keep` allows projected prompts to be kept from one forward to the next (generation); they are dropped as soon as
    the layer's prompt is another tensor or has been written to.
    """

    layers: Mapping[int, PromptLayer]
    visual: Tensor | None = None
    keep: bool = False
    kept: dict[int, PromptKeysValues] = field(default_factory=dict)

    def project(self, index: int, module: AttentionModule, dtype: torch.dtype) -> PromptKeysValues:
        """Keys and values of the prompts of layer `index`, computed once per forward."""
        layer = self.layers[index]
        state = (layer.prompt.data_ptr(), layer.prompt._version)
        kept = self.kept.get(index)
        if kept is not None and kept.state == state and not torch.is_grad_enabled():
            return kept
        projected = _project(module, layer, self.visual, dtype, state)
        if self.keep and not torch.is_grad_enabled():
            self.kept[index] = projected
        return projected


def route(host: Host) -> None:
    """Send every attention module of `host` through this file; idempotent, and the saved config stays as it was.

    The one place that leans on a private attribute of `transformers`: each attention module gets a config copy that
    names our function, and keeps the original as `base_config`, which is asked for the base attention at each call.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ROUTE, attend)
    for index, module in enumerate(attention_modules(host)):
        if getattr(module, "base_config", None) is not None:
            continue
        module.base_config = module.config
        module.config = copy.copy(module.config)
        module.config._attn_implementation_internal = ROUTE
        module.adapter_index = index


def attend(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    adapter: AdapterCall | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The host's own attention, plus the prompt branch where this call adapts this layer.

    query (batch, heads, tokens, head_dim); returns (batch, tokens, heads, head_dim) before the output projection.
    """
    if adapter is None or module.adapter_index not in adapter.layers:
        return _base_attention(module, query, key, value, attention_mask, **kwargs)
    layer = adapter.layers[module.adapter_index]
    projected = adapter.project(module.adapter_index, module, query.dtype)
    if layer.joint:
        return _joint_attention(module, query, key, value, attention_mask, projected, **kwargs)
    output, weights = _base_attention(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling") or default_scaling(query.shape[-1])
    branch = gated_prompt_attention(
        query,
        projected.keys,
        projected.values,
        layer.gate_values(),
        scaling,
        kwargs.get("softcap"),
        projected.value_shift,
    )
    return output + branch, weights


def _project(
    module: AttentionModule, layer: PromptLayer, visual: Tensor | None, dtype: torch.dtype, state: tuple[int, int]
) -> PromptKeysValues:
    """Prompts (and images) through the layer's own key and value projections.

    Without a key norm the image shifts every prompt's key by the same vector, which cancels in the prompts' softmax,
    and its value by Wv I (design decision 8): prompts are then projected once for all rows. With a key norm, and in
    joint attention, where the shift does not cancel, each row's prompts are projected with its image.
    """
    project = recipe_for(module.config.model_type).project
    prompt = layer.prompt.to(dtype)[None]
    if visual is None:
        return PromptKeysValues(*project(module, prompt), None, state)
    visual = visual.to(dtype)
    if layer.joint or getattr(module, "k_norm", None) is not None:
        return PromptKeysValues(*project(module, prompt + visual[:, None]), None, state)
    keys, values = project(module, prompt)
    shifted = project(module, torch.cat([visual[:, None], visual.new_zeros(1, 1, visual.shape[-1])]))[1]
    return PromptKeysValues(keys, values, shifted[:-1] - shifted[-1:], state)


def _joint_attention(module, query, key, value, attention_mask, projected: PromptKeysValues, **kwargs):
    """One softmax over prompts and text (the paper's ablation baseline; no gate)."""
    batch = query.shape[0]
    keys = repeat_rows(projected.keys, batch).expand(batch, -1, -1, -1)
    values = repeat_rows(projected.values, batch).expand(batch, -1, -1, -1)
    mask = joint_prompt_scores_mask(attention_mask, query, key, keys.shape[-2])
    key, value = torch.cat([keys, key], dim=-2), torch.cat([values, value], dim=-2)
    return _base_attention(module, query, key, value, mask, **kwargs)


def _base_attention(module, query, key, value, attention_mask, **kwargs):
    """The attention that the host would use without us, looked up at each call, under the host's own config."""
    routed = module.config
    module.config = module.base_config
    try:
        return _base_function(module)(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.config = routed


def _base_function(module: AttentionModule) -> Callable:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = module.base_config._attn_implementation
    if name == "eager":  # not in the table: each model file has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]
