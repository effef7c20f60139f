"""The visual projection: CLIP features to visual tokens of the host's width (LLaMA-Adapter, section 3.3; V2, 3.2).

Two kinds: a bottleneck MLP over global features, and a query transformer over all CLIP tokens. Both give tokens that
differ from each other by more than a shared vector: identical tokens, or learned tokens plus one vector of the picture,
shift all keys alike, which cancels in the softmax of the attention that reads them.

Deviates: V2 says that 20 visual tokens come from global features, not how. Here the MLP's last layer has rows of its
own for each token (hidden -> tokens * width).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.methods.adapter import BuildContext
from mmadapter.methods.settings import ProjectionConf
from mmadapter.vision.encoder import VisionEncoder, weights_digest


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
        self.is_given_read = False  # whether pictures come as `read` has made them

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, tokens, features), or what `read` has made of it, -> (rows, queries, width)."""
        read = tokens if self.is_given_read else self.read(tokens)
        return self.widen_norm(self.widen(read))

    def read(self, tokens: Tensor) -> Tensor:
        """(rows, tokens, features) -> (rows, queries, inner): what the queries have found in the picture."""
        seen = self.narrow_norm(self.narrow(tokens.float()))
        hidden = torch.cat([self.queries.expand(len(seen), -1, -1), seen], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden[:, : len(self.queries)]

    def nothing(self) -> Tensor:
        """What stands for a picture where there is none but the projection has to run: (1, 1, features), or (1, 1,
        inner)."""
        numbers = self.widen.in_features if self.is_given_read else self.narrow.in_features
        return self.narrow.weight.new_zeros(1, 1, numbers)

    def read_once(self, encoder: VisionEncoder) -> VisionEncoder:
        """For a projection that is frozen from now on: what gives each picture as `read` makes it of `encoder`'s.

        So the blocks run once a picture, and not in every step; what is kept of a picture is smaller besides.
        """
        self.is_given_read = True
        return ReadPictures(encoder, self)


class ReadPictures(VisionEncoder):
    """A frozen image encoder with a frozen query transformer behind it: (queries, inner) of each picture."""

    def __init__(self, encoder: VisionEncoder, projection: QueryTransformer) -> None:
        super().__init__()
        self.encoder, self.settings = encoder, encoder.settings
        self._projection = (projection,)  # not a module of this one: it is the adapter's
        self.feature_shape = tuple(projection.queries.shape)

    def preparation(self) -> Callable[[Image.Image], Tensor]:
        return self.encoder.preparation()

    def encode(self, pixels: Tensor) -> Tensor:
        return self._projection[0].read(self.encoder.encode(pixels))

    def digest(self) -> str:
        return weights_digest(self._projection[0], self.encoder.digest())


def build(settings: ProjectionConf, context: BuildContext) -> MlpProjection | QueryTransformer:
    """The projection of the settings, from what the image encoder gives to (rows, tokens, width), freshly drawn."""
    assert context.features is not None, "a visual projection needs an image encoder"
    sizes, width = (context.features, settings.hidden), context.host.width
    projection: MlpProjection | QueryTransformer
    if settings.kind == "mlp":
        projection = MlpProjection(*sizes, width, settings.tokens, device=context.device)
    else:
        inner = (settings.tokens, settings.blocks, settings.heads)
        projection = QueryTransformer(*sizes, *inner, width, device=context.device)
    if context.generator is not None:
        draw(projection, context.generator)
    return projection


def draw(projection: nn.Module, generator: torch.Generator) -> None:
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
