"""The visual projection: CLIP features to visual tokens of the host's width (LLaMA-Adapter, section 3.3; V2, 3.2).

Two kinds: a bottleneck MLP over global features, and a query transformer over all CLIP tokens. Both give tokens that
differ from each other by more than a shared vector: identical tokens, or learned tokens plus one vector of the picture,
shift all keys alike, which cancels in the softmax of the attention that reads them.

Deviates: V2 says that 20 visual tokens come from global features, not how. Here the MLP's last layer has rows of its
own for each token (hidden -> tokens * width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.vision.query_transformer import QueryTransformer

KINDS = ("mlp", "query_transformer")


class MlpProjection(nn.Module):
    """Bottleneck MLP from concatenated multi-scale features to visual tokens of the host's width, in float32.

    4608 -> 64 -> 4096 has 561,216 parameters, which fits the paper's 0.6M.
    Deviates: the paper gives neither widths nor the non-linearity; here GELU, and each feature vector is first brought
    to zero mean and unit variance without parameters: the scales of CLIP's blocks differ by orders of magnitude.
    """

    ROLE = "visual_projection"

    def __init__(self, features: int, hidden: int, width: int, tokens: int = 1, *, device=None) -> None:
        super().__init__()
        self.tokens = tokens
        self.narrow = nn.Linear(features, hidden, device=device)
        self.widen = nn.Linear(hidden, tokens * width, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """(rows, features) -> (rows, tokens, width)."""
        normed = nn.functional.layer_norm(features.float(), features.shape[-1:])
        return self.widen(nn.functional.gelu(self.narrow(normed))).unflatten(-1, (self.tokens, -1))

    def nothing(self) -> Tensor:
        """(1, features): what stands for a picture where there is none but the projection has to run."""
        return self.narrow.weight.new_zeros(1, self.narrow.in_features)


def build_projection(
    kind: str, features: int, width: int, *, hidden: int, tokens: int, blocks: int, heads: int, device=None
) -> MlpProjection | QueryTransformer:
    """The projection that `adapter.projection` names, from `features` numbers (per picture or per CLIP token) to
    (rows, `tokens`, `width`). `hidden` is its inner width; `blocks` and `heads` count for the query transformer only.

    Raises InputError for a kind that does not exist, or heads that do not share the inner width evenly.
    """
    if kind == "mlp":
        return MlpProjection(features, hidden, width, tokens, device=device)
    if kind != "query_transformer":
        raise InputError(f"adapter.projection.kind={kind}: allowed are {', '.join(KINDS)}.")
    if hidden % heads:
        raise InputError(
            f"adapter.projection: heads={heads} do not divide hidden={hidden}. Each head takes hidden / heads numbers; "
            "choose a divisor."
        )
    return QueryTransformer(features, hidden, tokens, blocks, heads, width, device=device)


def seed_projection(projection: nn.Module, generator: torch.Generator) -> None:
    """Draw a projection's weights again from `generator`, parents before children.

    Linear layers: uniform, bounded by 1 / sqrt(inputs), as torch's default; queries: normal(0, 1), as the official
    code's `nn.Embedding`; norms keep ones and zeros.
    """
    for module in projection.modules():
        if isinstance(module, QueryTransformer):
            nn.init.normal_(module.queries, generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for tensor in (module.weight, module.bias):
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
