"""The table of host families: how each names its parts, and how its attention turns hidden states into keys and values.

A family is one row. Methods ask for places by the names of this table, never for modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmadapter.errors import InputError

KeysValues = tuple[Tensor, Tensor]
# Their classes are found at run time: a `transformers` causal language model, and one of its attention modules.
Host = Any
AttentionModule = Any

ATTENTION = "attention"  # the place of the attention itself, which is reached through the attention route


@dataclass(frozen=True)
class Family:
    """One family's row.

    `project(module, hidden)` takes (rows, tokens, width) and gives keys and values, each (rows, kv_heads, tokens,
    head_dim). It calls the projections as modules, so quantised, sharded and adapted ones work. No rotary embedding and
    no normalisation of the hidden state.
    """

    attention: str  # path of the attention module in a decoder block
    project: Callable[[AttentionModule, Tensor], KeysValues]
    linears: dict[str, str]  # name of a linear layer -> its path in a block
    ffn: str = "mlp"  # path of the feed-forward module, which gets the normalised hidden state
    attention_out: str = "o"  # the linear layer whose output the attention adds to the residual
    ffn_out: str = "down"  # the same of the feed-forward module
    kernels: tuple[str, ...] = ("eager", "sdpa", "flex")  # values of host.attention that it can run with
    # A batch may be a forest: all tokens meet in the attention alone (no state along the row, no convolution), and
    # `position_ids` are all that the model knows of positions (rotary; no ALiBi, no learned ones).
    forest: bool = False

    def own_name(self, place: str) -> str:
        """The name of a place under which its parts are kept: attention_out and ffn_out are linear layers."""
        return {"attention_out": self.attention_out, "ffn_out": self.ffn_out}.get(place, place)

    @property
    def places(self) -> dict[str, str]:
        """Every named place of a block that is a module -> its path; norms go by their own names (places.py)."""
        outputs = {name: self.linears[self.own_name(name)] for name in ("attention_out", "ffn_out")}
        return {**self.linears, "ffn": self.ffn, **outputs}


def separate_projections(module: AttentionModule, hidden: Tensor) -> KeysValues:
    """`k_proj` and `v_proj`, and the family's key norm where it has one (Qwen3, Gemma-3).

    The papers say nothing on key norms: the prompts' keys pass it, so that they are scaled like the text's.
    """
    keys = _split_heads(module.k_proj(hidden), module.head_dim)
    values = _split_heads(module.v_proj(hidden), module.head_dim)
    norm = getattr(module, "k_norm", None)
    return (keys if norm is None else norm(keys)), values


def fused_projection(module: AttentionModule, hidden: Tensor) -> KeysValues:
    """`qkv_proj` with rows [q | k | v] (Phi-3)."""
    fused = module.qkv_proj(hidden)
    size = module.config.num_key_value_heads * module.head_dim
    keys, values = fused[..., -2 * size : -size], fused[..., -size:]
    return _split_heads(keys, module.head_dim), _split_heads(values, module.head_dim)


def interleaved_projection(module: AttentionModule, hidden: Tensor) -> KeysValues:
    """`query_key_value` with q, k, v side by side in each head (GPT-NeoX)."""
    fused = _split_heads(module.query_key_value(hidden), 3 * module.head_size)
    _, keys, values = fused.chunk(3, dim=-1)
    return keys, values


def _split_heads(projected: Tensor, head_dim: int) -> Tensor:
    rows, length, _ = projected.shape
    return projected.view(rows, length, -1, head_dim).transpose(1, 2)


_OUTPUT_AND_DOWN = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
_SEVEN_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    **_OUTPUT_AND_DOWN,
}
_PHI3_LINEARS = {"qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj", **_OUTPUT_AND_DOWN}
_NEOX_LINEARS = {
    "qkv": "attention.query_key_value",
    "o": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
_SEPARATE = Family("self_attn", separate_projections, _SEVEN_LINEARS, forest=True)
FAMILIES: dict[str, Family] = {  # by the model type of `transformers`
    "llama": _SEPARATE,
    "mistral": _SEPARATE,
    "qwen2": _SEPARATE,
    "qwen3": _SEPARATE,
    "gemma": _SEPARATE,
    "gemma2": Family("self_attn", separate_projections, _SEVEN_LINEARS, kernels=("eager",), forest=True),
    "gemma3_text": _SEPARATE,
    "phi3": Family("self_attn", fused_projection, _PHI3_LINEARS, forest=True),
    "gpt_neox": Family("attention", interleaved_projection, _NEOX_LINEARS, forest=True),
}


def family_of(model_type: str) -> Family:
    """The row of a `transformers` model type. Raises InputError that lists the supported types."""
    if model_type not in FAMILIES:
        raise InputError(
            f"host.path holds a model of type {model_type!r}, which no row of hosts/families.py describes. "
            f"Supported: {', '.join(sorted(FAMILIES))}. Choose a host of one of these types."
        )
    return FAMILIES[model_type]


def decoder(host: Host) -> Any:
    """The part of a causal language model that holds the decoder blocks and the norm behind them."""
    # By structure: neither `base_model_prefix` nor `get_decoder` is right for all families in all supported versions.
    return next(child for child in host.children() if hasattr(child, "layers"))


def decoder_layers(host: Host) -> nn.ModuleList:
    """The decoder blocks of a causal language model, lowest first."""
    return decoder(host).layers


def attention_modules(host: Host) -> list[AttentionModule]:
    """The attention module of every decoder block, lowest first."""
    path = family_of(host.config.model_type).attention
    return [layer.get_submodule(path) for layer in decoder_layers(host)]
