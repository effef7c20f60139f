"""The keys and values of answers that are being written, a row of memory for each, filled from the left.

A row's token stands at the place of its position, so rows of any length meet in one batch without padding; what a row
may see is said by its length alone. Rows come and go: the last one moves to where one has left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmadapter.hosts.families import KeysValues
from mmadapter.hosts.forest import capped_attention

# The memory grows by so many tokens a row at a time.
ROOM = 64


class KeyValueCache:
    """What every layer keeps of at most `most_rows` rows."""

    def __init__(self, most_rows: int, device: torch.device | str) -> None:
        self.most_rows, self.device = most_rows, device
        self.lengths: list[int] = []
        """tokens of each row"""
        self._kept: dict[int, KeysValues] = {}
        self._entering: list[Tensor] = []
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._masks: dict[int | None, Tensor | None] = {}

    def enter(self, paths: Sequence[Sequence[int]]) -> None:
        """New rows behind the others; the next forward of the host brings their tokens, each row's at `paths`."""
        self._entering = [torch.tensor(path, device=self.device) for path in paths]
        self.lengths += map(len, paths)

    def keep_entering(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep what the rows that enter need of key and value, (1, kv_heads, tokens, head_dim)."""
        keys, values = self._with_room(layer, max(self.lengths), key)
        for row, path in enumerate(self._entering, len(self.lengths) - len(self._entering)):
            keys[row, :, : len(path)] = key[0].index_select(1, path)
            values[row, :, : len(path)] = value[0].index_select(1, path)

    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its number."""
        last = len(self.lengths) - 1
        for part in (part for pair in self._kept.values() for part in pair):
            part[row, :, : self.lengths[last]] = part[last, :, : self.lengths[last]]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def next_positions(self) -> Tensor:
        """(rows, 1): where each row's next token stands, which the next forward of the host brings."""
        self._places, self._masks = torch.tensor(self.lengths, device=self.device), {}
        return self._places[:, None]

    def attention(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """The attention of each row's next token to its row, (rows, 1, heads, head_dim).

        query (rows, heads, 1, head_dim), key and value (rows, kv_heads, 1, head_dim), after rotary; they are kept.
        """
        rows, kv_heads, _, size = key.shape
        width = max(self.lengths) + 1
        keys, values = self._with_room(layer, width, key)
        first = torch.arange(rows * kv_heads, device=key.device).view(rows, kv_heads) * keys.shape[2]
        for kept, new in ((keys, key), (values, value)):
            kept.view(-1, size).index_copy_(0, (first + self._places[:, None]).flatten(), new.reshape(-1, size))
        keys, values = keys[:rows, :, :width], values[:rows, :, :width]
        mask = self._mask(width, window, query)
        # Heads that share a key stand as tokens of one head: keys and values are read once, and not repeated.
        grouped = query.reshape(rows, kv_heads, -1, size)
        if softcap is None:
            attended = nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
        else:
            attended = capped_attention(grouped, keys, values, 0.0 if mask is None else mask, scaling, softcap)
        return attended.reshape(rows, 1, -1, size)

    def _with_room(self, layer: int, tokens: int, like: Tensor) -> KeysValues:
        """(most_rows, kv_heads, room, head_dim) each, with room for so many tokens a row."""
        kept = self._kept.get(layer)
        if kept is None or kept[0].shape[2] < tokens:
            size = self.most_rows, like.shape[1], -(-tokens // ROOM) * ROOM, like.shape[-1]
            grown = like.new_zeros(size), like.new_zeros(size)
            for old, new in zip(kept or (), grown, strict=False):
                new[:, :, : old.shape[2]] = old
            self._kept[layer] = kept = grown
        return kept

    def _mask(self, width: int, window: int | None, like: Tensor) -> Tensor | None:
        """(rows, 1, 1, width): 0 where a row's next token sees, else minus infinity; None where all see all."""
        window = None if window is None or window >= width else window
        if window not in self._masks:
            place, last = torch.arange(width, device=like.device), self._places[:, None]
            hidden = place > last if window is None else (place > last) | (place <= last - window)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None] if min(self.lengths) + 1 < width or window is not None else None
        return self._masks[window]
