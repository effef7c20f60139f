"""The attention route: every attention module of a host looks here first, and then at its own base attention.

The adapter of a call arrives as the keyword `adapter` of that call, never as state on the modules: activation
checkpointing recomputes with it, several adapters can share a host, and a host called without it is the plain host.
Linear layers and norms, which get no keywords, learn of it through the host's CallSlot (adapted.py).
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmadapter.adapters.adapter import Adapter, VisualTokens
from mmadapter.adapters.zero_init import (
    EarlyGate,
    PromptLayer,
    default_scaling,
    gated_prompt_attention,
    joint_prompt_scores_mask,
    repeat_rows,
)
from mmadapter.hosts.adapted import call_slot
from mmadapter.hosts.recipes import AttentionModule, Host, attention_modules, recipe_for

ROUTE = "mmadapter"


@dataclass
class PromptKeysValues:
    """What one layer's branch attends to: projected prompts, or projected visual tokens (early fusion)."""

    keys: Tensor
    values: Tensor
    value_shift: Tensor | None  # what the images add to every prompt's value (V1), where that is all they do
    gate: Tensor | None  # (heads,) or (rows, heads), zero for a row without an image; None: joint attention
    state: tuple[int, int]  # of the tensor that was projected


@dataclass
class AdapterCall:
    """What one call of the host carries: the adapter, and the rows' images as visual tokens (None: no row has one).

    `keep` allows projected prompts to be kept from one forward to the next (generation); they are dropped as soon as
    the layer's prompt is another tensor or has been written to.
    """

    adapter: Adapter
    visual: VisualTokens | None = None
    keep: bool = False
    kept: dict[int, PromptKeysValues] = field(default_factory=dict)

    def branch(self, index: int) -> PromptLayer | EarlyGate | None:
        """What is added to the attention of layer `index`; early gates count only where a row has an image."""
        branch = self.adapter.branch(index)
        return None if isinstance(branch, EarlyGate) and self.visual is None else branch

    def project(self, index: int, module: AttentionModule, dtype: torch.dtype) -> PromptKeysValues:
        """Keys, values and gates of the branch of layer `index`, computed once per forward."""
        branch = self.branch(index)
        assert branch is not None
        source = self._source(branch)
        state = (source.data_ptr(), _version(source))
        kept = self.kept.get(index)
        if kept is not None and kept.state == state and not torch.is_grad_enabled():
            return kept
        with _projections(module, self.adapter.prompt_projection):
            if isinstance(branch, PromptLayer):
                late = None if self.adapter.early else self.visual
                projected = _project_prompts(module, branch, late, dtype, state)
            else:
                projected = _project_visual_tokens(module, branch, self.visual, dtype, state)
        if self.keep and not torch.is_grad_enabled():
            self.kept[index] = projected
        return projected

    def _source(self, branch: PromptLayer | EarlyGate) -> Tensor:
        if isinstance(branch, PromptLayer):
            return branch.prompt
        assert self.visual is not None
        return self.visual.tokens


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; always 0 for one made in `torch.inference_mode`, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


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
        module.host_slot = call_slot(host)


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
    branch = None if adapter is None else adapter.branch(module.adapter_index)
    if adapter is None or branch is None:
        return _base_attention(module, query, key, value, attention_mask, **kwargs)
    projected = adapter.project(module.adapter_index, module, query.dtype)
    if projected.gate is None:
        return _joint_attention(module, query, key, value, attention_mask, projected, **kwargs)
    output, weights = _base_attention(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling") or default_scaling(query.shape[-1])
    attended = gated_prompt_attention(
        query,
        projected.keys,
        projected.values,
        projected.gate,
        scaling,
        kwargs.get("softcap"),
        projected.value_shift,
    )
    return output + attended, weights


def _projections(module: AttentionModule, prompt_projection: str) -> contextlib.AbstractContextManager:
    """Whether the module's projections act as this call's adapter has them, or as the frozen host has them."""
    slot = module.host_slot
    return slot.during(None) if prompt_projection == "base" else contextlib.nullcontext()


def _project_prompts(
    module: AttentionModule, layer: PromptLayer, visual: VisualTokens | None, dtype: torch.dtype, state: tuple[int, int]
) -> PromptKeysValues:
    """Prompts (and images added to them, V1) through the layer's own key and value projections.

    Without a key norm one visual token shifts every prompt's key by the same vector, which cancels in the prompts'
    softmax, and its value by Wv I (design decision 8): prompts are then projected once for all rows. With a key norm or
    a soft cap on the scores, in joint attention and with a visual token for each prompt, where the shift does not
    cancel, each row's prompts are projected with its image.
    """
    project = recipe_for(module.config.model_type).project
    gate = None if layer.joint else layer.gate_values()
    prompt = layer.prompt.to(dtype)[None]
    if visual is None:
        return PromptKeysValues(*project(module, prompt), None, gate, state)
    tokens = visual.tokens.to(dtype)
    if tokens.shape[1] > 1 or layer.joint or not _shifts_cancel(module):
        return PromptKeysValues(*project(module, prompt + tokens), None, gate, state)
    keys, values = project(module, prompt)
    shifted = project(module, torch.cat([tokens, tokens.new_zeros(1, 1, tokens.shape[-1])]))[1]
    return PromptKeysValues(keys, values, shifted[:-1] - shifted[-1:], gate, state)


def _shifts_cancel(module: AttentionModule) -> bool:
    """Whether one vector on all prompts' keys leaves their softmax as it is: neither key norm nor soft cap."""
    return getattr(module, "k_norm", None) is None and getattr(module, "attn_logit_softcapping", None) is None


def _project_visual_tokens(
    module: AttentionModule, branch: EarlyGate, visual: VisualTokens | None, dtype: torch.dtype, state: tuple[int, int]
) -> PromptKeysValues:
    """Visual tokens through the layer's own projections (V2, early fusion); closed gates where there is no image."""
    assert visual is not None
    keys, values = recipe_for(module.config.model_type).project(module, visual.tokens.to(dtype))
    gate = branch.gate_values() * visual.present[:, None]
    return PromptKeysValues(keys, values, None, gate, state)


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
