"""From the config's sources to micro-batches: reading, encoding, the mixture, the validation batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from mmadapter import data
from mmadapter.config.data import ReadingConf
from mmadapter.config.mixture import samples_per_step
from mmadapter.data.batches import Batch, FeaturedBatches
from mmadapter.data.mixture import JointMixture, Mixture
from mmadapter.data.own_part import OwnPart
from mmadapter.data.samples import Sample
from mmadapter.data.samples_digest import samples_digest
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.errors import InputError
from mmadapter.processes import here
from mmadapter.vision.features import FeatureStore


class TrainingData(Protocol):
    """What the loop reads on this process: micro-batches by step, and batches that are not trained on."""

    @property
    def validation(self) -> Sequence[Any]: ...

    @property
    def sources(self) -> Sequence[str]: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    def step_batches(self, step: int) -> list[Any]: ...

    def image_paths(self) -> list[Path]: ...


@dataclass(frozen=True)
class Samples:
    """What was read, by source."""

    training: dict[str, list[Sample]]
    validation: dict[str, list[Sample]]


@dataclass
class RunData:
    """What a run trains on and validates on."""

    mixture: Mixture | JointMixture
    encoded: dict[str, list[Encoded]]
    own_validation: list[Batch]  # this process's part
    validation_images: list[Path]  # of all processes
    validation_samples: int
    cut_samples: int  # prompts that were too long and were cut
    cut_answers: int = 0  # answers likewise, where data.long_answers allows it
    with_images: bool = True
    cut_turns: int = 0  # last turns of dialogs that were too long
    digests: dict[str, str] = field(default_factory=dict)  # source -> what its samples are, of all processes
    features: FeatureStore | None = None  # of all pictures

    @property
    def sources(self) -> list[str]:
        return list(self.encoded)

    @property
    def steps_per_epoch(self) -> int:
        return self.mixture.steps_per_epoch

    def step_batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of optimizer step `step`, counted from the run's start, with features."""
        return [batch.with_features(self.features) for batch in self.mixture.step_batches(step)]

    @property
    def validation(self) -> Sequence[Batch]:
        """This process's batches that are not trained on, with features."""
        return FeaturedBatches(self.own_validation, self.features)

    def image_paths(self) -> list[Path]:
        """All pictures that training and validation will ask for, each once."""
        if not self.with_images:
            return []
        trained = [item.sample.image for items in self.encoded.values() for item in items]
        return list(dict.fromkeys(path for path in [*trained, *self.validation_images] if path is not None))

    def describe(self) -> str:
        """Two lines: samples by source, validation, what was cut; what a step and an epoch hold."""
        parts = ", ".join(f"{name} {len(items):,}" for name, items in self.encoded.items())
        text = f"training samples: {parts}; validation samples: {self.validation_samples:,}"
        cut = {
            "prompts were too long and were cut": self.cut_samples,
            "answers were too long and were cut": self.cut_answers,
            "last turns of dialogs did not fit and were left out": self.cut_turns,
        }
        text += "".join(f"; {count:,} {what}" for what, count in cut.items() if count)
        return f"{text}\n{self.mixture.describe()}"


def read_samples(conf: Any) -> Samples:
    """Reads everything that `conf.data` names, before any model is loaded. Raises InputError on what cannot be used."""
    if not conf.data.sources:
        raise InputError("data.sources is empty: there is nothing to train on. Choose an experiment, or data=NAME.")
    own_part(conf)
    if samples_per_step(conf) is None:
        micro_batches(conf.optimizer.batch_size, conf.optimizer.micro_batch_size)
    training = {name: read_source(conf, name, source) for name, source in conf.data.sources.items()}
    validation = {name: read_source(conf, name, source) for name, source in conf.data.validation.items()}
    check_disjoint(training, validation)
    return Samples(training, validation)


def encode(
    conf: Any, samples: Samples, tokenizer: Any, max_tokens: int, features: FeatureStore | None = None
) -> RunData:
    """Samples as token ids, mixed into steps; `features` gives those of their pictures, where there are any.

    Raises InputError naming a sample that has no answer or does not fit.
    """
    encoder, part = SampleEncoder(tokenizer, max_tokens, conf.data.long_answers), own_part(conf)
    encoded = {name: encoder.encode_many(listed) for name, listed in samples.training.items()}
    cut, cut_turns = (encoder.cut_samples, encoder.cut_answers), encoder.cut_turns
    mixture = mixture_of(conf, encoded, encoder.pad_id, part)
    validation = {name: sorted(encoder.encode_many(listed), key=_length) for name, listed in samples.validation.items()}
    size = conf.optimizer.micro_batch_size
    batches = [batch for items in validation.values() for batch in part.batches(items, size, encoder.pad_id)]
    shown = [item.sample.image for items in validation.values() for item in items if item.sample.image is not None]
    count = sum(map(len, validation.values()))
    digests = {f"data.sources.{name}": samples_digest(items) for name, items in encoded.items()}
    digests |= {f"data.validation.{name}": samples_digest(items) for name, items in validation.items()}
    return RunData(mixture, encoded, batches, shown, count, *cut, conf.vision.enabled, cut_turns, digests, features)


def own_part(conf: Any) -> OwnPart:
    """This process's part of every step. Raises InputError where a step has fewer samples than there are processes."""
    processes, size = here(), conf.optimizer.batch_size
    if size < processes.count:
        raise InputError(
            f"optimizer.batch_size={size} is shared out over {processes.count} processes: some would have nothing to "
            f"do in every step. Start at most {size} processes (or set optimizer.batch_size={processes.count})."
        )
    return OwnPart(processes.rank, processes.count)


def mixture_of(
    conf: Any, encoded: Mapping[str, Sequence[Encoded]], pad_id: int, part: OwnPart
) -> Mixture | JointMixture:
    """Samples of every source in each step where the settings ask for it, else whole steps of one source in turns."""
    size, shares = conf.optimizer.micro_batch_size, samples_per_step(conf)
    if shares is not None:
        return JointMixture(encoded, shares, size, conf.seed, pad_id, part=part)
    weights = {name: source.weight for name, source in conf.data.sources.items()}
    count = micro_batches(conf.optimizer.batch_size, size)
    return Mixture(encoded, weights, size, conf.seed, pad_id, count, part=part)


def read_source(conf: Any, name: str, source: Any) -> list[Sample]:
    """The samples of one entry of data.sources or data.validation, with their answers."""
    settings = {field.name: getattr(source, field.name) for field in fields(ReadingConf)}
    if settings["root"] is None and settings["path"] is None:
        settings["root"] = conf.data.root
    if settings["root"] is None and settings["path"] is None:
        raise InputError(
            f"data.sources.{name} has no place to read from. Set data.root=FOLDER (or its own root or path)."
        )
    settings["images"] = source.images and conf.vision.enabled
    if source.captions_per_image == "one":
        settings["seed"] = conf.seed  # decides which one
    return data.read(source=name, training=True, **settings)


def micro_batches(batch_size: int, micro_batch_size: int) -> int:
    """Micro-batches of a step. Raises InputError where the sizes do not divide."""
    if batch_size % micro_batch_size:
        raise InputError(
            f"optimizer.micro_batch_size={micro_batch_size} does not divide optimizer.batch_size={batch_size}. "
            "Choose a divisor, so that every step holds the same number of samples."
        )
    return batch_size // micro_batch_size


def check_disjoint(training: Mapping[str, Sequence[Sample]], validation: Mapping[str, Sequence[Sample]]) -> None:
    """Raises InputError where a validation sample is trained on."""
    trained = {_identity(sample) for samples in training.values() for sample in samples}
    for name, samples in validation.items():
        for sample in samples:
            if _identity(sample) in trained:
                raise InputError(
                    f"data.validation.{name}: {sample.where} is trained on, too. Give the validation another split."
                )


def _identity(sample: Sample) -> tuple[Any, ...]:
    return (sample.where, sample.image, sample.segments)


def _length(item: Encoded) -> int:
    return len(item.ids)
