"""Two methods, a host family, an image encoder, a reader and a task that the package lacks; `add` registers them.

Each is what docs/architecture.md asks for: a settings class, a class or function, one line in a register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.data.readers import Purpose
from mmadapter.data.samples import ANSWER, INSTRUCTION, Sample, Segment
from mmadapter.data.settings import READERS, ReaderSettings
from mmadapter.hosts.families import FAMILIES, Family, separate_projections
from mmadapter.methods import METHODS
from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import MethodConf
from mmadapter.settings import choice, number, plain
from mmadapter.tasks import TASKS
from mmadapter.tasks.section import Result, Section, Tile
from mmadapter.tasks.settings import TaskSettings
from mmadapter.tasks.task import Answers, Scored, Task
from mmadapter.vision import ENCODERS
from mmadapter.vision.encoder import VisionEncoder, weights_digest
from mmadapter.vision.settings import VisionSettings

# A method: W (x * (1 + s)), one vector s a linear layer, on every n-th layer.


@dataclass
class StretchConf(MethodConf):
    ROLES: ClassVar[tuple[str, ...]] = ("stretch",)

    at: str = plain("fc_in")  # a linear layer, by the family's name
    every: int = number(1, at_least=1)  # every n-th layer has it


class Stretch(nn.Module):
    ROLES: ClassVar[dict[str, str]] = {"amount": "stretch"}
    DECAYS = True

    def __init__(self, inputs: int, device: str | None) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(inputs, device=device))

    def forward(self, base: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        return base((hidden * (1 + self.amount)).to(hidden.dtype))

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) | {"weight": tensors["weight"] * (1 + self.amount)}


def build_stretch(settings: StretchConf, context: BuildContext) -> Method:
    linears = context.host.linears([settings.at], "adapter.stretch.at")
    chosen = {place: linear for place, linear in linears.items() if place[0] % settings.every == 0}
    return Method({place: Stretch(linear.in_features, context.device) for place, linear in chosen.items()})


# A method that stands in for the visual projection: one linear layer.


@dataclass
class GlanceConf(MethodConf):
    ROLES: ClassVar[tuple[str, ...]] = ("glance",)
    VISUAL: ClassVar[bool] = True
    READS_FEATURES: ClassVar[bool] = True

    tokens: int = number(1, at_least=1)

    def feature_problems(self, key: str, shape: tuple[int, ...]) -> Iterator[str]:
        if shape[-1] < 3:
            yield f"{key} reads 3 features or more, but the encoder gives {shape[-1]}."


class Glance(nn.Module):
    ROLE = "glance"

    def __init__(self, features: int, width: int, tokens: int, context: BuildContext) -> None:
        super().__init__()
        weight = torch.zeros(tokens * width, features, device=context.device)
        self.weight, self.tokens = nn.Parameter(weight), tokens
        if context.generator is not None:
            nn.init.normal_(self.weight, generator=context.generator)

    def forward(self, features: Tensor) -> Tensor:
        """(rows, features) -> (rows, tokens, width)."""
        return (features @ self.weight.T).unflatten(-1, (self.tokens, -1))

    def nothing(self) -> Tensor:
        return self.weight.new_zeros(1, self.weight.shape[1])


def build_glance(settings: GlanceConf, context: BuildContext) -> Glance:
    return Glance(context.features or 0, context.host.width, settings.tokens, context)


# A host family: StarCoder2, whose feed-forward layers have names of their own, and biases everywhere.

STARCODER = Family(
    "self_attn",
    separate_projections,
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "fc_in": "mlp.c_fc",
        "fc_out": "mlp.c_proj",
    },
    ffn_out="fc_out",
)


# An image encoder: mean colours of a grid, through a frozen matrix.


@dataclass
class MosaicSettings(VisionSettings):
    encoder: str = "mosaic"
    grid: int = number(2, at_least=1)  # rows and columns of the picture
    width: int = number(6, at_least=1)

    def feature_shape(self) -> tuple[int, ...]:
        return (self.width,)


class Mosaic(VisionEncoder):
    settings: MosaicSettings

    def __init__(self, settings: MosaicSettings) -> None:
        super().__init__()
        self.settings, self.feature_shape = settings, settings.feature_shape()
        weights = torch.randn(settings.width, 3 * settings.grid**2, generator=torch.Generator().manual_seed(0))
        self.mix = nn.Parameter(weights, requires_grad=False)

    def preparation(self) -> Callable[[Image.Image], Tensor]:
        return partial(mean_colours, self.settings.grid)

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.mix.T

    def digest(self) -> str:
        return weights_digest(self, self.settings.grid)


def mean_colours(grid: int, image: Image.Image) -> Tensor:
    small = image.resize((grid, grid), Image.Resampling.BOX)
    return torch.tensor(list(small.tobytes())).float().view(grid, grid, 3).permute(2, 0, 1) / 255


# A reader: lines of picture, question and answer.


@dataclass
class LinesSettings(ReaderSettings):
    reader: str = "lines"
    separator: str = choice(";", "|")

    reads_file: ClassVar[bool] = True


def read_lines(settings: LinesSettings, purpose: Purpose) -> list[Sample]:
    file, samples = Path(str(settings.path)), []
    for number_, line in enumerate(file.read_text().splitlines()[: settings.limit]):
        picture, question, answer = line.split(settings.separator)
        segments = [Segment(question, INSTRUCTION)] + [Segment(f" {answer}", ANSWER)] * purpose.training
        image = file.parent / picture if settings.images else None
        where = f"{file.name}, line {number_ + 1}"
        samples.append(Sample(str(number_), purpose.source, tuple(segments), image, where, {"answer": answer}))
    return samples


# A task: how many words the answers have.


@dataclass
class TalkSettings(TaskSettings, LinesSettings):
    name: str = "talk"
    reader: str = choice("lines")
    longest: int = number(3, at_least=1)  # words that count


class Talk(Task[TalkSettings]):
    TITLE = "Talkativeness"
    SCORES = ("words", "letters")
    MAIN_SCORES = ("words",)
    IN_SUMMARY = ("answers",)

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        rows = [
            {"id": sample.id, "instruction": sample.prompt, "output": text, "reference": sample.meta["answer"]}
            for sample, text in zip(samples, answers.texts, strict=True)
        ]
        words = [min(len(text.split()), self.settings.longest) for text in answers.texts]
        letters = sum(map(len, answers.texts)) / len(rows)
        return Scored({"words": sum(words) / len(rows), "letters": letters, "answers": len(rows)}, rows)

    @classmethod
    def section(cls, results: Sequence[Result], with_papers: bool = True) -> Section:
        words = Tile("Words an answer", f"{results[-1].metrics['words']:.3f}", "of the toy task")
        return replace(super().section(results), tiles=[words], notes=["A note that only the toy task makes."])


@contextmanager
def registered() -> Iterator[None]:
    """While inside, the parts are registered."""
    add()
    try:
        yield
    finally:
        METHODS.remove("stretch")
        METHODS.remove("glance")
        del FAMILIES["starcoder2"]
        ENCODERS.remove("mosaic")
        READERS.remove("lines")
        TASKS.remove("talk")


def add() -> None:
    """The one line that each part costs."""
    METHODS.add("stretch", StretchConf, build_stretch)
    METHODS.add("glance", GlanceConf, build_glance)
    FAMILIES["starcoder2"] = STARCODER
    ENCODERS.add("mosaic", MosaicSettings, Mosaic)
    READERS.add("lines", LinesSettings, read_lines)
    TASKS.add("talk", TalkSettings, Talk)
