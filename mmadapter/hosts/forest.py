"""A batch as a forest of segments: each token stands once, and attends to what is in front of it on its own path.

What several samples begin with (a template, a question about one picture) is one segment, whose children go on where
it ends. All segments stand behind each other in one row of tokens, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ForestSegment:
    """A run of tokens that follows another one, or begins a path."""

    length: int
    """its tokens"""
    before: int
    """tokens in front of it on its path: the position of its first one"""
    ancestors: tuple[int, ...]
    """the segments in front of it on its path, by their places in the forest, the first one first"""


@dataclass(frozen=True)
class Forest:
    """The segments of one row of tokens, in the order in which they stand in it; parents before their children."""

    segments: tuple[ForestSegment, ...]
    group_sizes: tuple[int, ...]
    """tokens of each group; a group is the trees of one picture, or those without one. They stand side by side."""
    positions: Tensor
    """(1, tokens): each token's place on its own path"""
    predicting: Tensor
    """(rows,): the tokens whose logits are asked for, each once"""
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    """those of this batch, which all layers share"""

    def to(self, device: torch.device | str) -> Forest:
        """The same forest with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("positions", "predicting")}
        return replace(self, masks={}, **moved)

    @property
    def tokens(self) -> int:
        """How many there are, in all segments."""
        return sum(self.group_sizes)

    def spread(self, of_groups: Tensor) -> Tensor:
        """(tokens, ...) of (groups, ...): for each token what its group has."""
        sizes = torch.tensor(self.group_sizes, device=of_groups.device)
        return of_groups.repeat_interleave(sizes, dim=0, output_size=self.tokens)

    def mask(self, segment: ForestSegment, window: int | None, like: Tensor) -> Tensor:
        """(tokens of the segment, tokens of its path): 0 where the one attends to the other, else minus infinity."""
        key = (segment.length, segment.before, window, like.dtype, like.device)
        if key not in self.masks:
            last = torch.arange(segment.before, segment.before + segment.length, device=like.device)[:, None]
            there = torch.arange(segment.before + segment.length, device=like.device)[None]
            hidden = there > last if window is None else (there > last) | (there <= last - window)
            self.masks[key] = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
                hidden, float("-inf")
            )
        return self.masks[key]


def no_mask() -> Tensor:
    """What a host is given as its attention mask beside a forest, in which each segment has a mask of its own.

    With four dimensions it goes through the host's mask builder as it is; and because it is empty, an attention that
    has not heard of the forest fails instead of attending everywhere.
    """
    return torch.empty(1, 1, 0, 0)


def forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The attention of every token to its own path, (1, tokens, heads, head_dim).

    query (1, heads, tokens, head_dim), after rotary; key and value (1, kv_heads, tokens, head_dim). `window` counts the
    tokens that one attends to, itself among them (None: all). Raises TypeError where keys and tokens are not the same.
    """
    lengths = [segment.length for segment in forest.segments]
    if not query.shape[-2] == key.shape[-2] == forest.tokens:
        raise TypeError(
            f"a forest of {forest.tokens} tokens, {query.shape[-2]} queries and {key.shape[-2]} keys: a part at the "
            "attention that adds or takes away tokens must say follows_forest = False"
        )
    # The gradient of a split is one concatenation; that of as many slices would be as many whole tensors of zeros.
    queries, keys, values = (part.split(lengths, dim=-2) for part in (query, key, value))
    attended = []
    for place, segment in enumerate(forest.segments):
        path = (*segment.ancestors, place)
        its_keys, its_values = (
            torch.cat([parts[one] for one in path], dim=-2) if len(path) > 1 else parts[place]
            for parts in (keys, values)
        )
        reaches_all = window is None or segment.before + segment.length <= window
        is_causal = reaches_all and not segment.before and softcap is None
        mask = None if is_causal else forest.mask(segment, None if reaches_all else window, query)
        if softcap is None:
            grouped = query.shape[1] != key.shape[1]
            attended.append(
                nn.functional.scaled_dot_product_attention(
                    queries[place],
                    its_keys,
                    its_values,
                    attn_mask=mask,
                    is_causal=is_causal,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        else:
            assert mask is not None
            attended.append(capped_attention(queries[place], its_keys, its_values, mask, scaling, softcap))
    return torch.cat([piece.transpose(1, 2) for piece in attended], dim=1)


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | float, scaling: float, softcap: float
) -> Tensor:
    """softmax(softcap * tanh(q k / softcap) + mask) v, the softmax in float32 (Gemma-2)."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scaling / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
