"""Zero-init attention: adaptation prompts (LLaMA-Adapter, section 3.2, equations 4 to 8) and early fusion of visual
tokens (V2, section 3.3), and the paper's baseline without a gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmadapter.hosts.attention import Attended, AttentionInputs
from mmadapter.hosts.calls import VisualTokens
from mmadapter.hosts.families import ATTENTION
from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import EarlyFusionConf, PromptsConf

Attention = Callable[[AttentionInputs], Attended]


def build_prompts(settings: PromptsConf, context: BuildContext) -> Method:
    """Prompts for the host's last layers, drawn lowest layer first. Raises InputError where there are not so many."""
    depth = context.host.depth
    count = settings.layers or depth - (context.fused_layers or depth // 16)
    layers = context.host.last_layers(count, "adapter.prompts.layers")
    width, heads = context.host.width, context.host.heads
    own = (settings, width, heads, context.generator, context.device)
    return Method({(layer, ATTENTION): PromptLayer(*own) for layer in layers})


def build_early_fusion(settings: EarlyFusionConf, context: BuildContext) -> Method:
    """Closed gates for the host's first layers. Raises InputError where there are not so many."""
    layers = context.host.first_layers(settings.layers, "adapter.early_fusion.layers")
    return Method({(layer, ATTENTION): EarlyGate(settings, context.host.heads, context.device) for layer in layers})


@dataclass(frozen=True)
class Branch:
    """What the gated branch of one layer attends to: projected prompts, or projected visual tokens."""

    keys: Tensor
    values: Tensor
    value_shift: Tensor | None = None  # what the images add to every prompt's value (V1), where that is all they do


class PromptLayer(nn.Module):
    """The adaptation prompt of one layer and the gates of its attention, always in float32.

    `prompt` is (length, width); `gate` is (heads,) or (1,), zero at the start, and absent in joint attention; `factor`
    is (1,), where the settings ask for it.
    """

    ROLES = {"prompt": "prompt", "gate": "gate", "factor": "gate"}
    DECAYS = True  # the official gates are 4-D, so weight decay falls on them

    @property
    def follows_forest(self) -> bool:
        """Joint attention has keys that are no tokens of the forest."""
        return not self.joint

    def __init__(
        self,
        settings: PromptsConf,
        width: int,
        heads: int,
        generator: torch.Generator | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.heads, self.through = settings, heads, settings.through
        prompt = torch.empty(settings.length, width, dtype=torch.float32, device=device)
        if not prompt.is_meta:
            prompt.normal_(0.0, settings.std, generator=generator)
        self.prompt = nn.Parameter(prompt)
        if not self.joint:
            self.gate = _closed_gate(settings.gate_per, heads, device)
            if settings.gate_factor:
                self.factor = nn.Parameter(torch.ones(1, dtype=torch.float32, device=device))

    @property
    def joint(self) -> bool:
        return self.settings.attention == "joint"

    def gate_values(self) -> Tensor:
        """The factors on the prompt branch, (heads,): tanh(gate) or the gate itself, times `factor` where it is."""
        values = _gate_values(self.gate, self.settings.gate, self.heads)
        return values * self.factor if self.settings.gate_factor else values

    def forward(self, base: Attention, inputs: AttentionInputs) -> Attended:
        """The attention with the prompt branch beside it, or with the prompts in the same softmax (joint)."""
        call = inputs.call
        branch = call.once(self, self.prompt, lambda: self._branch(inputs, None if call.fused else call.visual))
        if self.joint:
            return base(joint_inputs(inputs, branch.keys, branch.values))
        output, weights = base(inputs)
        return output + _attended(inputs, branch, self.gate_values()), weights

    def _branch(self, inputs: AttentionInputs, visual: VisualTokens | None) -> Branch:
        """Prompts, and images added to them (V1), through the layer's own key and value projections.

        Without a key norm one visual token shifts every prompt's key by the same vector, which cancels in the prompts'
        softmax, and its value by Wv I: prompts are then projected once for all rows. With a key norm or a soft cap on
        the scores, in joint attention and with a visual token for each prompt, where the shift does not cancel, each
        row's prompts are projected with its image.
        """
        dtype = inputs.query.dtype
        prompt = self.prompt.to(dtype)[None]
        if visual is None:
            return Branch(*inputs.project(prompt, self.through))
        tokens = visual.tokens.to(dtype)
        if tokens.shape[1] > 1 or self.joint or not inputs.shifts_cancel:
            return Branch(*inputs.project(prompt + tokens, self.through))
        keys, values = inputs.project(prompt, self.through)
        nothing = tokens.new_zeros(1, 1, tokens.shape[-1])
        shifted = inputs.project(torch.cat([tokens, nothing]), self.through)[1]
        return Branch(keys, values, shifted[:-1] - shifted[-1:])


class EarlyGate(nn.Module):
    """The gates of the visual tokens' attention in one of the first layers, zero at the start.

    `gate` is (heads,) or (1,), float32. The layer has no prompt of its own: its keys and values are the visual tokens.
    """

    ROLES = {"gate": "early_gate"}
    DECAYS = True
    follows_forest = True

    def __init__(self, settings: EarlyFusionConf, heads: int, device: str | None = None) -> None:
        super().__init__()
        self.settings, self.heads, self.through = settings, heads, settings.through
        self.gate = _closed_gate(settings.gate_per, heads, device)

    def gate_values(self) -> Tensor:
        """The factors on the visual tokens' branch, (heads,)."""
        return _gate_values(self.gate, self.settings.gate, self.heads)

    def forward(self, base: Attention, inputs: AttentionInputs) -> Attended:
        """The attention with the visual tokens' branch beside it; closed gates for a row without an image."""
        visual = inputs.call.visual
        output, weights = base(inputs)
        if visual is None:
            return output, weights

        def branch() -> Branch:
            return Branch(*inputs.project(visual.tokens.to(inputs.query.dtype), self.through))

        gate = self.gate_values() * visual.present[:, None]
        return output + _attended(inputs, inputs.call.once(self, visual.tokens, branch), gate), weights

    def attention_to(self, inputs: AttentionInputs) -> Tensor:
        """(batch, heads, tokens, visual tokens): the branch's attention, whose rows sum to 1, for those who look."""
        visual = inputs.call.visual
        assert visual is not None
        keys, _ = inputs.project(visual.tokens.to(inputs.query.dtype), self.through)
        weights = prompt_attention(inputs.query, keys, inputs.scaling, inputs.softcap)
        batch, heads, tokens, _ = inputs.query.shape
        return weights.reshape(batch, heads, tokens, -1)


def _attended(inputs: AttentionInputs, branch: Branch, gate: Tensor) -> Tensor:
    query, keys, values, shift = inputs.query, branch.keys, branch.values, branch.value_shift
    own, forest = (inputs.scaling, inputs.softcap), inputs.forest
    if forest is None:
        return gated_prompt_attention(query, keys, values, gate, *own, shift)

    # A forest has one row of tokens, whose groups each have a picture of their own, or none.
    if len(keys) > 1 or gate.ndim > 1:
        pieces = [
            gated_prompt_attention(piece, keys[place : place + 1], values[place : place + 1], factors, *own)
            for place, (piece, factors) in enumerate(
                zip(query.split(forest.group_sizes, dim=-2), gate.expand(len(keys), -1), strict=True)
            )
        ]
        return torch.cat(pieces, dim=1)
    attended = gated_prompt_attention(query, keys, values, gate, *own)
    if shift is None:
        return attended
    shift = shift.squeeze(-2).repeat_interleave(query.shape[1] // shift.shape[1], dim=1)  # (groups, heads, head_dim)
    return attended + forest.spread(shift * gate.to(shift.dtype)[:, None])[None]


def _closed_gate(gate_per: str, heads: int, device: str | None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(heads if gate_per == "head" else 1, dtype=torch.float32, device=device))


def _gate_values(gate: Tensor, kind: str, heads: int) -> Tensor:
    return (torch.tanh(gate) if kind == "tanh" else gate).expand(heads)


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
    weights = prompt_attention(query, keys, scaling, softcap)
    attended = torch.matmul(weights.to(query.dtype), repeat_rows(values, batch))
    if value_shift is not None:
        attended = attended + repeat_rows(value_shift, batch)
    attended = attended.reshape(batch, heads, tokens, head_dim)
    factors = repeat_rows(gate.to(query.dtype).view(-1, heads, 1, 1), batch)
    return (attended * factors).transpose(1, 2)


def prompt_attention(query: Tensor, keys: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """(batch, kv_heads, heads per kv_head * tokens, prompt_length): gated_prompt_attention's softmax, in float32."""
    batch, heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads * tokens, head_dim)
    scores = torch.matmul(grouped, repeat_rows(keys, batch).transpose(-1, -2)).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.softmax(-1)


def joint_inputs(inputs: AttentionInputs, keys: Tensor, values: Tensor) -> AttentionInputs:
    """The same question with `keys` and `values` (rows, kv_heads, length, head_dim) in front, in one softmax, which
    every query may attend to (the paper's ablation baseline; no gate).
    """
    batch = inputs.query.shape[0]
    keys, values = (repeat_rows(part, batch).expand(batch, -1, -1, -1) for part in (keys, values))
    return replace(
        inputs,
        key=torch.cat([keys, inputs.key], dim=-2),
        value=torch.cat([values, inputs.value], dim=-2),
        mask=joint_mask(inputs.mask, inputs.query, inputs.key, keys.shape[-2]),
    )


def joint_mask(mask: Tensor | None, query: Tensor, keys: Tensor, length: int) -> Tensor | None:
    """The host's mask with `length` columns in front that every query may attend to.

    `mask` is what the host gave: None (causal, or one query that sees all), bool (True = attend) or additive float.
    """
    tokens, seen = query.shape[-2], keys.shape[-2]
    if mask is None:
        if tokens == 1:
            return None
        mask = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).tril(seen - tokens)[None, None]
    open_columns = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
    return torch.cat([open_columns(*mask.shape[:-1], length), mask[..., -seen:]], dim=-1)


def repeat_rows(tensor: Tensor, batch: int) -> Tensor:
    """Rows of `tensor` (rows, ...) repeated side by side to `batch` rows; a single row is left to broadcasting."""
    rows = tensor.shape[0]
    if rows in (1, batch):
        return tensor
    repeats, rest = divmod(batch, rows)
    if rest:
        raise ValueError(f"{rows} rows of prompts do not divide a batch of {batch} rows")
    return tensor.repeat_interleave(repeats, dim=0)
