"""A toy model with the real one's methods, and toy data through the real mixture."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmadapter.config import RunConf
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.mixture import JointMixture, Mixture, StepShape, TurnsMixture
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.tokens import Encoded, samples_digest
from mmadapter.methods.groups import parameter_groups, trainable_parameters
from mmadapter.methods.settings import GroupConf
from mmadapter.runs.folder import take_over
from mmadapter.runs.journal import Journal
from mmadapter.terminal import Display
from mmadapter.training.loop import Loop
from mmadapter.training.memory import MemoryAdvice
from mmadapter.training.optimizer import check_sources
from mmadapter.training.schedule import Schedule
from mmadapter.training.settings import ENGINES
from tests.distributed.several import here

VOCABULARY, WIDTH = 13, 6


class ToyLayer(nn.Module):
    ROLES = {"prompt": "prompt", "gate": "gate"}
    DECAYS = True

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(3, WIDTH))
        self.gate = nn.Parameter(torch.full((2,), 0.3))


class ToyAdapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = ToyLayer()
        self.visual_projection = nn.Linear(2, WIDTH)
        self.visual_projection.ROLE = "visual_projection"


class ToyModel(nn.Module):
    """Predicts a token from the one before it; the trainable parts shift the frozen embedding, with dropout."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.head = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)
        self.adapter = ToyAdapter()
        self.dropout = nn.Dropout(dropout)
        self.prepared: list[Path] = []

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.embedding(batch.input_ids).flatten(0, 1)[batch.rows]
        layer = self.adapter.layer
        weights = (hidden @ layer.prompt.T).softmax(-1)
        hidden = hidden + torch.tanh(layer.gate).sum() * self.dropout(weights @ layer.prompt)
        seen = torch.tensor([[0.0, 0.0] if image is None else [1.0, 2.0] for image in batch.images])
        pictured = self.adapter.visual_projection(seen) * seen.sum(-1, keepdim=True)
        logits = self.head(torch.tanh(hidden + pictured[batch.pair_sample]))
        return nn.functional.cross_entropy(logits, batch.targets, reduction="sum")

    def trainable_parameters(self) -> list:
        return trainable_parameters(self.adapter)

    def gates(self) -> Tensor:
        return torch.tanh(self.adapter.layer.gate)[None]

    def save(self, folder, training) -> None:
        """What a run saves is asked for in test_run.py."""

    def prepare_images(self, paths, progress=None, ranks=None) -> None:
        self.prepared = list(paths)
        torch.rand(3)  # a careless library that draws random numbers


class ToyData:
    """Sources of random token rows; `validation` is a source of its own. `shares`: samples a step of every source."""

    def __init__(
        self,
        batch_size: int = 4,
        micro_batches: int = 2,
        samples: int = 22,
        sources: Sequence[str] = ("questions",),
        shares: Mapping[str, int] | None = None,
    ) -> None:
        sizes = (
            {name: samples for name in sources} if shares is None else {name: 3 * shares[name] + 1 for name in shares}
        )
        encoded = {name: [toy_sample(name, number) for number in range(size)] for name, size in sizes.items()}
        self.mixture: Mixture
        if shares is None:
            self.mixture = TurnsMixture(encoded, StepShape(batch_size * micro_batches, batch_size, 7), 0)
        else:
            self.mixture = JointMixture(encoded, StepShape(sum(shares.values()), batch_size, 7), 0, shares)
        self.sources = list(encoded)
        self.digests = {name: samples_digest(items) for name, items in encoded.items()}
        self.validation = [make_batch([toy_sample("validation", number) for number in range(5)], 0)]

    @property
    def steps_per_epoch(self) -> int:
        return self.mixture.steps_per_epoch

    def step_batches(self, step: int) -> list[Batch]:
        return self.mixture.step_batches(step)

    def image_paths(self) -> list[Path]:
        return []


def toy_sample(source: str, number: int, supervised: int | None = None) -> Encoded:
    rng = random.Random(f"{source} {number}")
    ids = [rng.randrange(1, VOCABULARY) for _ in range(rng.randrange(4, 9))]
    image = Path("picture.png") if number % 2 and source != "instructions" else None
    sample = Sample(f"{source}-{number}", source, (Segment("x", "answer"),), image, f"{source} {number}")
    supervised = rng.randrange(1, 4) if supervised is None else supervised
    return Encoded(sample, array("i", ids), ((len(ids) - supervised, len(ids)),) if supervised else ())


def toy_conf(**training) -> RunConf:
    """Settings of a toy run: three epochs, validation and saves on a schedule."""
    conf = RunConf()
    conf.adapter.groups = {"all": GroupConf(roles=["prompt", "gate", "visual_projection"])}
    optimizer = {
        "base_lr": 1.0,
        "epochs": 3.0,
        "warmup_epochs": 0.5,
        "batch_size": 8,
        "micro_batch_size": 4,
        "clip_norm": 1.0,
    }
    conf.optimizer = replace(conf.optimizer, **optimizer)
    settings = {"validate_every_steps": 3, "save_every_steps": 2, "log_every_steps": 2, "tensorboard": False}
    conf.training = replace(conf.training, **(settings | training))
    return conf


def train(conf: RunConf, model, data, folder: Path, journal: Journal, display: Display | None = None) -> dict:
    """Train `model` as training/run.py does: the loop's objects from settings, resume, run."""
    groups = parameter_groups(model.trainable_parameters(), conf.adapter.groups, conf.adapter.frozen)
    check_sources(groups, data.sources)
    engine = ENGINES.load(conf.engine.name)(model, groups, conf.optimizer, conf.seed, conf.engine, here())
    optimizer = conf.optimizer.sized(data.steps_per_epoch, methods_lr=1.0)
    advice = MemoryAdvice(optimizer, conf.host, conf.engine, conf.resume, here().world_size)
    schedule = Schedule.of(optimizer, data.steps_per_epoch)
    display = display or Display(log_every_steps=conf.training.log_every_steps)
    settings = conf.training, conf.host.dtype_on("cpu"), conf.resume
    loop = Loop(engine, data, schedule, folder, journal, display, advice, *settings)
    loop.resume()
    take_over(folder, conf)
    return loop.run()


def run_toy(folder: Path, epochs: float = 3.0, delay: float = 0.0, **training) -> dict:
    """One whole training in `folder`; the adapter is written to adapter.pt at the end. `delay` seconds a step."""

    class SlowData(ToyData):
        def step_batches(self, step: int) -> list[Batch]:
            time.sleep(delay)
            return super().step_batches(step)

    torch.set_num_threads(1)
    conf = toy_conf(**training)
    conf.optimizer.epochs = epochs
    model = ToyModel(dropout=0.2)
    torch.manual_seed(1)
    random.seed(1)
    journal = Journal(folder)
    try:
        summary = train(conf, model, SlowData(), folder, journal)
    finally:
        journal.close()
    torch.save({item.name: item.parameter.detach() for item in model.trainable_parameters()}, folder / "adapter.pt")
    return summary
