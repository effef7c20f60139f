"""What a run trains on: its sources read, encoded and mixed into steps, and the batches that it validates on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.batches import Batch, FeaturedBatches
from mmadapter.data.mixture import JointMixture, Mixture, StepShape, TurnsMixture, micro_batches
from mmadapter.data.readers import read
from mmadapter.data.samples import Sample
from mmadapter.data.settings import OWN, DataConf, GroupSources, ReaderSettings, samples_per_step
from mmadapter.data.tokens import Encoded, SampleEncoder, samples_digest
from mmadapter.errors import InputError
from mmadapter.vision.features import FeatureStore, PixelReader

READERS_LOG = logging.getLogger("mmadapter.data.readers")


@dataclass(frozen=True)
class Samples:
    """What was read, by source."""

    training: dict[str, list[Sample]]
    validation: dict[str, list[Sample]]

    @property
    def count(self) -> int:
        """How many samples there are to train on."""
        return sum(map(len, self.training.values()))


def read_samples(conf: DataConf, *, images: bool, seed: int, tokenizer: Any = None) -> Samples:
    """Reads everything that `conf` names, before any model is loaded; `images=False` leaves all pictures out.

    `tokenizer` is the host's, for its chat template. Raises InputError on what cannot be used, and where a
    validation sample is trained on.
    """

    def read_all(part: str, listed: Mapping[str, ReaderSettings]) -> dict[str, list[Sample]]:
        found = {}
        for name, source in listed.items():
            key = f"data.{part}.{name}"
            if key == "data.validation.own" and "own" in conf.sources:
                key = OWN  # conf/data/own.yaml: all its settings follow the source's, so they are to be set there
            with_ = {"images": images, "seed": seed, "key": key, "tokenizer": tokenizer}
            found[name] = read(source, conf.root, source=name, training=True, **with_)
        return found

    training, validation = read_all("sources", conf.sources), read_all("validation", conf.validation)
    trained = {(one.where, one.image, one.segments) for samples in training.values() for one in samples}
    for name, samples in validation.items():
        for one in samples:
            if (one.where, one.image, one.segments) in trained:
                raise InputError(
                    f"data.validation.{name}: {one.where} is trained on, too. Give the validation another split."
                )
    return Samples(training, validation)


class Remarks(logging.Handler):
    """What readers say of their files, each message once, while it takes the place of the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.messages:
            self.messages.append(text)

    def __enter__(self) -> Remarks:
        READERS_LOG.addHandler(self)
        READERS_LOG.propagate, self.level_before = False, READERS_LOG.level
        READERS_LOG.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        READERS_LOG.removeHandler(self)
        READERS_LOG.propagate = True
        READERS_LOG.setLevel(self.level_before)


def supervised_tokens(item: Encoded) -> int:
    return sum(end - begin for begin, end in item.spans)


class RunData:
    """What a run trains on and validates on, as token ids mixed into steps."""

    def __init__(
        self, conf: DataConf, samples: Samples, encoder: SampleEncoder, shape: StepShape, groups: GroupSources
    ) -> None:
        """Encodes everything; `groups` says which sources move which group, so how they share the steps.

        Raises InputError naming a sample that has no answer or does not fit.
        """
        # Training samples first: their counts of what was cut are those that are shown.
        self.encoded = {name: encoder.encode_many(listed) for name, listed in samples.training.items()}
        self.cut = {
            "prompts were too long and were cut": encoder.cut_samples,
            "answers were too long and were cut": encoder.cut_answers,
            "last turns of dialogs did not fit and were left out": encoder.cut_turns,
        }
        validation = {
            name: sorted(encoder.encode_many(listed), key=lambda item: len(item.ids))
            for name, listed in samples.validation.items()
        }

        # The mixture: samples of every source in each step, or whole steps of one source in turns.
        shares = samples_per_step(conf.sources, shape.batch_size, groups)
        weights = {name: source.weight for name, source in conf.sources.items()}
        together = [name for name, source in conf.sources.items() if source.keeps_pictures_together]
        self.mixture: Mixture = (
            TurnsMixture(self.encoded, shape, encoder.pad_id, weights, together)
            if shares is None
            else JointMixture(self.encoded, shape, encoder.pad_id, shares, together)
        )
        self.sources, self.steps_per_epoch = list(self.encoded), self.mixture.steps_per_epoch

        # The validation; what was read is the same on every rank.
        self._validation_items, self._shape, self._pad_id = validation, shape, encoder.pad_id
        self.lay_out("padded")
        self.features: FeatureStore | PixelReader | None = None  # of all pictures, once there is an encoder
        self._validated = [item.sample for items in validation.values() for item in items]
        self.parts = {f"training, {name}": items for name, items in self.encoded.items()}
        self.parts |= {f"validation, {name}": items for name, items in validation.items()}
        self.digests = {f"data.sources.{name}": samples_digest(items) for name, items in self.encoded.items()}
        self.digests |= {f"data.validation.{name}": samples_digest(items) for name, items in validation.items()}

    def lay_out(self, layout: str) -> None:
        """From now on this rank's micro-batches, of training and validation, are "padded" or each a "forest"."""
        self.mixture.layout = layout
        self._validation = [
            batch
            for items in self._validation_items.values()
            for batch in micro_batches(items, self._shape, self._pad_id, layout)
        ]

    def step_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step`, counted from the run's start, with features."""
        return [batch.with_features(self.features) for batch in self.mixture.step_batches(step)]

    @property
    def validation(self) -> Sequence[Batch]:
        """This rank's batches that are not trained on, with features."""
        return FeaturedBatches(self._validation, self.features)

    def image_paths(self) -> list[Path]:
        """All pictures that training and validation will ask for on any rank, each once."""
        trained = [item.sample for items in self.encoded.values() for item in items]
        return list(dict.fromkeys(one.image for one in [*trained, *self._validated] if one.image is not None))

    def longest(self) -> tuple[int, int]:
        """Tokens of the longest sample, and supervised ones of the sample that has the most."""
        items = [item for part in self.parts.values() for item in part]
        return max(len(item.ids) for item in items), max(supervised_tokens(item) for item in items)

    def table(self) -> list[list[str]]:
        """A line a source: name, samples, those with a picture; tokens of a sample: least, median, 95 %, most."""
        rows = []
        for name, items in self.parts.items():
            lengths = sorted(len(item.ids) for item in items)
            places = [round(share * (len(lengths) - 1)) for share in (0, 0.5, 0.95, 1)]
            pictured = sum(item.sample.image is not None for item in items)
            rows.append([name, f"{len(items):,}", f"{pictured:,}", *(f"{lengths[place]:,}" for place in places)])
        return rows

    def describe(self) -> str:
        """Two lines: samples by source, validation, what was cut; what a step and an epoch hold."""
        parts = ", ".join(f"{name} {len(items):,}" for name, items in self.encoded.items())
        text = f"training samples: {parts}; validation samples: {len(self._validated):,}"
        text += "".join(f"; {count:,} {what}" for what, count in self.cut.items() if count)
        return f"{text}\n{self.mixture.describe()}"
