"""Adaptation prompts with zero-init attention (LLaMA-Adapter, section 3.2 and equations 4 to 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GATES = ("tanh", "identity")
GATE_SIZES = ("head", "layer")
ATTENTIONS = ("zero_init", "joint")


@dataclass(frozen=True)
class PromptSettings:
    """What one adapted layer needs to know; the same for all layers of an adapter."""

    prompt_length: int  # K; paper: 10
    width: int  # C, the host's hidden size
    heads: int  # H, query heads
    gate: str = "tanh"  # "tanh" (paper v3, training code) or "identity" (files of March and April 2023)
    gate_per: str = "head"  # "head" (paper) or "layer" (the released file of March 2023)
    attention: str = "zero_init"  # "zero_init", or "joint": the paper's ablation baseline without a gate
    prompt_std: float = 1.0  # standard deviation of the prompts at the start; official: 1
    gate_factor: bool = False  # one more factor on a layer's gates, 1 at the start (the released V2 LoRA file)

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("gate", self.gate, GATES),
            ("gate_per", self.gate_per, GATE_SIZES),
            ("attention", self.attention, ATTENTIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


class PromptLayer(nn.Module):
    """The adaptation prompt of one layer and the gates of its attention, always in float32.

    `prompt` is (prompt_length, width); `gate` is (heads,) or (1,), zero at the start, and absent in joint attention;
    `factor` is (1,), where the settings ask for it.
    """

    ROLES = {"prompt": "prompt", "gate": "gate", "factor": "gate"}

    def __init__(self, settings: PromptSettings, generator: torch.Generator | None = None, device=None) -> None:
        super().__init__()
        self.settings = settings
        prompt = torch.empty(settings.prompt_length, settings.width, dtype=torch.float32, device=device)
        if not prompt.is_meta:
            prompt.normal_(0.0, settings.prompt_std, generator=generator)
        self.prompt = nn.Parameter(prompt)
        if settings.attention == "zero_init":
            self.gate = _closed_gate(settings, device)
            if settings.gate_factor:
                self.factor = nn.Parameter(torch.ones(1, dtype=torch.float32, device=device))

    @property
    def joint(self) -> bool:
        return self.settings.attention == "joint"

    def gate_values(self) -> Tensor:
        """The factors on the prompt branch, (heads,): tanh(gate) or the gate itself, times `factor` where it is."""
        values = _gate_values(self.gate, self.settings)
        return values * self.factor if self.settings.gate_factor else values


class EarlyGate(nn.Module):
    """The gates of the visual tokens' attention in one of the first layers (V2 paper, early fusion), zero at the start.

    `gate` is (heads,) or (1,), float32. The layer has no prompt of its own: its keys and values are the visual tokens.
    """

    ROLES = {"gate": "early_gate"}

    def __init__(self, settings: PromptSettings, device=None) -> None:
        super().__init__()
        self.settings = settings
        self.gate = _closed_gate(settings, device)

    def gate_values(self) -> Tensor:
        """The factors on the visual tokens' branch, (heads,)."""
        return _gate_values(self.gate, self.settings)


def _closed_gate(settings: PromptSettings, device) -> nn.Parameter:
    count = settings.heads if settings.gate_per == "head" else 1
    return nn.Parameter(torch.zeros(count, dtype=torch.float32, device=device))


def _gate_values(gate: Tensor, settings: PromptSettings) -> Tensor:
    values = torch.tanh(gate) if settings.gate == "tanh" else gate
    return values.expand(settings.heads)


def gated_prompt_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor,
    scaling: float,
    softcap: float | None = None,
    value_shift: Tensor | None = None,
) -> Tensor:
    """The prompt branch g * (softmax(q kP / sqrt(d)) vP [+ shift]), LLaMA-Adapter v3 equation 7 and 8.

    query (batch, heads, tokens, head_dim), after rotary; keys and values (1 or prompts, kv_heads, prompt_length,
    head_dim) without rotary; gate (heads,) or (prompts, heads); value_shift (prompts, kv_heads, 1, head_dim) is what an
    image adds to every prompt's value. `prompts` divides `batch` (beams and several returns of one row stand side by
    side). Every query sees every prompt, so there is no mask. Softmax in float32. Returns (batch, tokens, heads,
    head_dim) in the query's dtype. V2's early fusion is the same formula with visual tokens in place of the prompts.

    Deviates: the paper divides the scores by sqrt(width); the official code by sqrt(head_dim), as every host here.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads * tokens, head_dim)
    scores = torch.matmul(grouped, repeat_rows(keys, batch).transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.softmax(-1)
    attended = torch.matmul(weights.to(query.dtype), repeat_rows(values, batch))
    if value_shift is not None:
        attended = attended + repeat_rows(value_shift, batch)
    attended = attended.reshape(batch, heads, tokens, head_dim)
    factors = repeat_rows(gate.to(query.dtype).view(-1, heads, 1, 1), batch)
    return (attended * factors).transpose(1, 2)


def joint_prompt_scores_mask(mask: Tensor | None, query: Tensor, keys: Tensor, prompt_length: int) -> Tensor | None:
    """The host's mask with `prompt_length` columns in front that every query may attend to.

    `mask` is what the host gave: None (causal, or one query that sees all), bool (True = attend) or additive float.
    """
    tokens, length = query.shape[-2], keys.shape[-2]
    if mask is None:
        if tokens == 1:
            return None
        mask = torch.ones(tokens, length, dtype=torch.bool, device=query.device).tril(length - tokens)[None, None]
    open_columns = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat([open_columns(*mask.shape[:-1], prompt_length), mask[..., -length:]], dim=-1)


def repeat_rows(tensor: Tensor, batch: int) -> Tensor:
    """Rows of `tensor` (rows, ...) repeated side by side to `batch` rows; a single row is left to broadcasting."""
    rows = tensor.shape[0]
    if rows in (1, batch):
        return tensor
    repeats, rest = divmod(batch, rows)
    if rest:
        raise ValueError(f"{rows} rows of prompts do not divide a batch of {batch} rows")
    return tensor.repeat_interleave(repeats, dim=0)


def default_scaling(head_dim: int) -> float:
    """1 / sqrt(head_dim), where the host does not give its own."""
    return 1.0 / math.sqrt(head_dim)
