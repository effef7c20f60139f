"""The query transformer over all CLIP tokens, as the released V1-caption and V2-7B models have it."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class QueryTransformer(nn.Module):
    """Learned queries read a picture's CLIP tokens in self-attention blocks and leave as visual tokens, in float32.

    Linear features -> inner and a norm; the queries are put in front of the tokens; `blocks` pre-norm transformer
    blocks (timm's, MLP ratio 4, bias on q, k and v, `nn.LayerNorm` with its own epsilon of 1e-5); the queries' outputs
    alone go through Linear inner -> width and a norm. Source: the official V2 code (`clip_proj` to `visual_proj_norm`);
    neither paper describes it.

    768 features, inner 768, 10 queries, 8 blocks of 16 heads and width 4096 (V2-7B): 60,460,800 parameters;
    inner 512 and 2 blocks (V1 caption): 8,814,080.
    """

    ROLE = "visual_projection"

    def __init__(
        self, features: int, inner: int, queries: int, blocks: int, heads: int, width: int, *, device=None
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.heads = heads
        self.narrow = nn.Linear(features, inner, device=device)
        self.narrow_norm = nn.LayerNorm(inner, device=device)
        self.queries = nn.Parameter(torch.randn(queries, inner, device=device))
        with nullcontext() if device is None else torch.device(device):  # older timm: no device argument
            stack = [Block(inner, heads, mlp_ratio=4, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(blocks)]
        self.blocks = nn.ModuleList(stack)
        self.widen = nn.Linear(inner, width, device=device)
        self.widen_norm = nn.LayerNorm(width, device=device)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, tokens, features) -> (rows, queries, width)."""
        seen = self.narrow_norm(self.narrow(tokens.float()))
        hidden = torch.cat([self.queries.expand(len(seen), -1, -1), seen], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        return self.widen_norm(self.widen(hidden[:, : len(self.queries)]))

    def nothing(self) -> Tensor:
        """(1, 1, features): what stands for a picture where there is none but the projection has to run."""
        return self.narrow.weight.new_zeros(1, 1, self.narrow.in_features)
