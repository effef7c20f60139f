"""The attention route: every attention module of a host looks here first, and then at its own base attention.

An adapter's parts at the place "attention" stand around the base attention as parts at other places stand around a
module: part(base, inputs), where `inputs` is an AttentionInputs and `base` gives the output and the weights.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmadapter.hosts.calls import AdapterCall, CallSlot, feed_predicting_rows
from mmadapter.hosts.families import (
    ATTENTION,
    AttentionModule,
    Host,
    KeysValues,
    attention_modules,
    decoder_layers,
    family_of,
)
from mmadapter.hosts.forest import Forest, forest_attention

ROUTE = "mmadapter"
Attended = tuple[Tensor, Tensor | None]  # (batch, tokens, heads, head_dim) before the output projection; the weights


@dataclass(frozen=True)
class AttentionInputs:
    """What one layer's attention is asked in one call.

    query (batch, heads, tokens, head_dim), after rotary; key and value (batch, kv_heads, length, head_dim), with what
    the cache holds; mask as the host's attention function takes it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    module: AttentionModule
    keywords: Mapping[str, Any]

    @property
    def call(self) -> AdapterCall:
        """The call of the host in which it is asked."""
        return self.module.adapter_slot.calls[-1]

    @property
    def forest(self) -> Forest | None:
        """How the tokens of the one row hang together, in a call with a forest."""
        return self.call.forest

    @property
    def scaling(self) -> float:
        """The factor on the scores: the host's own, else 1 / sqrt(head_dim)."""
        return self.keywords.get("scaling") or self.query.shape[-1] ** -0.5

    @property
    def softcap(self) -> float | None:
        """The host's soft cap on the scores, where it has one."""
        return self.keywords.get("softcap")

    @property
    def shifts_cancel(self) -> bool:
        """Whether one vector added to all keys leaves a softmax as it is: neither key norm nor soft cap."""
        capped = getattr(self.module, "attn_logit_softcapping", None) is not None
        return not capped and getattr(self.module, "k_norm", None) is None

    def project(self, hidden: Tensor, through: str = "adapted") -> KeysValues:
        """Keys and values of (rows, tokens, width) through the layer's own projections, without rotary.

        `through` "adapted": as this call's adapter has them; "base": as the frozen host has them.
        """
        with self.module.adapter_slot.during(None if through == "base" else self.call):
            return family_of(self.module.config.model_type).project(self.module, hidden)


def route(host: Host) -> None:
    """Send every attention module of `host` through this file; idempotent, and the saved config stays as it was.

    The one place that leans on a private attribute of `transformers`: each attention module gets a config copy that
    names our function, and keeps the original as `base_config`, which is asked for the base attention at each call.
    """
    from transformers import AttentionInterface

    if hasattr(host, "adapter_slot"):
        return
    AttentionInterface.register(ROUTE, attend)
    host.adapter_slot = CallSlot()
    for layer, module in enumerate(attention_modules(host)):
        module.base_config = module.config
        module.config = copy.copy(module.config)
        module.config._attn_implementation_internal = ROUTE
        module.adapter_slot, module.adapter_layer = host.adapter_slot, layer
    last = decoder_layers(host)[-1]
    feed_predicting_rows(last.get_submodule(family_of(host.config.model_type).ffn), host.adapter_slot)


def attend(
    module: AttentionModule, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> Attended:
    """The host's own attention, with the parts around it that this call has for this layer."""
    if "adapter" in keywords:
        raise TypeError("host(..., adapter=call) is now: with host.adapter_slot.during(call): host(...)")
    function = module.adapter_slot.around((module.adapter_layer, ATTENTION), frozen_attention)
    return function(AttentionInputs(query, key, value, attention_mask, module, keywords))


def frozen_attention(inputs: AttentionInputs) -> Attended:
    """The attention that the host would use without us, looked up at each call, under the host's own config.

    With a forest it is one attention a segment; with a cache of ours each row's next token attends to its row.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    forest, cache, layer = inputs.forest, inputs.call.cache, inputs.module.adapter_layer
    asked = inputs.query, inputs.key, inputs.value
    own = inputs.scaling, inputs.keywords.get("sliding_window"), inputs.softcap
    if cache is not None:
        if forest is None:
            return cache.attention(layer, *asked, *own), None
        cache.keep_entering(layer, inputs.key, inputs.value)
    if forest is not None:
        return forest_attention(*asked, forest, *own), None
    module, name = inputs.module, inputs.module.base_config._attn_implementation
    if name == "eager":  # not in the table: each model file has its own
        attention = sys.modules[type(module).__module__].eager_attention_forward
    else:
        attention = ALL_ATTENTION_FUNCTIONS[name]
    routed, module.config = module.config, module.base_config
    try:
        return attention(module, inputs.query, inputs.key, inputs.value, inputs.mask, **inputs.keywords)
    finally:
        module.config = routed
