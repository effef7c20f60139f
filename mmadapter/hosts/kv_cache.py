"""The keys and values of answers that are being written, a row of memory for each, filled from the left.

A row's token stands at the place of its position, so rows of any length meet in one batch without padding; what a row
may see is said by its length alone. Rows come and go: the last one moves to where one has left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mmadapter.hosts.families import KeysValues
from mmadapter.hosts.forest import capped_attention

# A row has room for so many tokens more than it needs, whenever memory is made; then all is copied once.
ROOM = 64
# So many rows attend together, up to the longest of them; a row more or less costs nothing, a call does.
ATTEND_TOGETHER = 8

Part = tuple[slice, int, Tensor | None]
"""Some rows, how many tokens they attend to, and the mask (rows, 1, 1, tokens); None: all to all"""


class KeyValueCache:
    """What every layer keeps of at most `most_rows` rows of at most `most_tokens` each."""

    def __init__(self, most_rows: int, most_tokens: int, device: torch.device | str) -> None:
        self.most_rows, self.most_tokens, self.device = most_rows, most_tokens, device
        self.lengths: list[int] = []
        """tokens of each row"""
        self._kept: dict[int, KeysValues] = {}
        self._entering: list[list[tuple[int, int, int]]] = []
        # What all layers share in one forward for the next tokens.
        self._places = torch.empty(0, 1, dtype=torch.int64, device=device)
        self._flat_places: dict[tuple[int, int], Tensor] = {}
        self._parts: dict[int | None, list[Part]] = {}

    def enter(self, paths: Sequence[Sequence[int]]) -> None:
        """New rows behind the others; the next forward of the host brings their tokens, each row's at `paths`."""
        self._entering = [list(stretches(path)) for path in paths]
        self.lengths += map(len, paths)

    def keep_entering(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep what the rows that enter need of key and value, (1, kv_heads, tokens, head_dim)."""
        kept = self._with_room(layer, max(self.lengths), key)
        for row, its_stretches in enumerate(self._entering, len(self.lengths) - len(self._entering)):
            for place, start, length in its_stretches:
                for memory, new in zip(kept, (key, value), strict=True):
                    memory[row, :, place : place + length] = new[0, :, start : start + length]

    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its number."""
        length = self.lengths.pop()
        if row == (last := len(self.lengths)):
            return
        self.lengths[row] = length
        for memory in (memory for pair in self._kept.values() for memory in pair):
            memory[row, :, :length] = memory[last, :, :length]

    def next_positions(self) -> Tensor:
        """(rows, 1): where each row's next token stands, which the next forward of the host brings."""
        self._places = torch.tensor(self.lengths, device=self.device)[:, None]
        self._flat_places, self._parts = {}, {}
        return self._places

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
        keys, values = self._with_room(layer, max(self.lengths) + 1, key)
        places = self._flat(kv_heads, keys.shape[2])
        keys.view(-1, size).index_copy_(0, places, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, places, value.reshape(-1, size))

        # Heads that share a key stand as tokens of one head: keys and values are read once, and not repeated.
        queries, attended = query.reshape(rows, kv_heads, -1, size), []
        for some, width, mask in self._parts_of(window, query):
            asked = queries[some], keys[some, :, :width], values[some, :, :width]
            if softcap is None:
                own = nn.functional.scaled_dot_product_attention(*asked, attn_mask=mask, scale=scaling)
            else:
                own = capped_attention(*asked, 0.0 if mask is None else mask, scaling, softcap)
            attended.append(own)
        together = attended[0] if len(attended) == 1 else torch.cat(attended)
        return together.reshape(rows, 1, -1, size)

    def _with_room(self, layer: int, tokens: int, like: Tensor) -> KeysValues:
        """(most_rows, kv_heads, room, head_dim) each, with room for at least so many tokens a row."""
        kept = self._kept.get(layer)
        if kept is None or kept[0].shape[2] < tokens:
            room = min(tokens + ROOM, self.most_tokens)
            grown = (
                like.new_zeros(self.most_rows, like.shape[1], room, like.shape[-1]),
                like.new_zeros(self.most_rows, like.shape[1], room, like.shape[-1]),
            )
            for old, new in zip(kept or (), grown, strict=False):
                new[:, :, : old.shape[2]] = old
            self._kept[layer] = kept = grown
        return kept

    def _flat(self, kv_heads: int, room: int) -> Tensor:
        """(rows * kv_heads,): the next tokens' places in keys or values that are flattened to (.., head_dim)."""
        if (kv_heads, room) not in self._flat_places:
            first = torch.arange(0, len(self.lengths) * kv_heads * room, room, device=self.device)
            self._flat_places[kv_heads, room] = (first.view(-1, kv_heads) + self._places).flatten()
        return self._flat_places[kv_heads, room]

    def _parts_of(self, window: int | None, like: Tensor) -> list[Part]:
        """The rows in parts; a row's next token sees what is before it, and itself, within the window."""
        if window not in self._parts:
            parts: list[Part] = []
            for start in range(0, rows := len(self.lengths), ATTEND_TOGETHER):
                some = slice(start, min(start + ATTEND_TOGETHER, rows))
                width = max(self.lengths[some]) + 1
                mask = None
                if min(self.lengths[some]) + 1 < width or (window is not None and window < width):
                    place, last = torch.arange(width, device=self.device), self._places[some]
                    hidden = place > last if window is None else (place > last) | (place <= last - window)
                    mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None, None]
                parts.append((some, width, mask))
            self._parts[window] = parts
        return self._parts[window]


def stretches(path: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(place in the path, number there, length) of each stretch in which the numbers of a path follow each other."""
    begin = 0
    for place in range(1, len(path) + 1):
        if place == len(path) or path[place] != path[place - 1] + 1:
            yield begin, path[begin], place - begin
            begin = place
