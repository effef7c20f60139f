"""A few samples of a task looked at closely: their answer with another picture, and which parts of the picture it rests
on.

The numbers are kept beside the predictions, so that a report needs no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageStat
from torch import Tensor

from mmadapter.data.batches import make_batch
from mmadapter.data.samples import ANSWER, Sample, Segment
from mmadapter.tasks.settings import TaskSettings
from mmadapter.vision.images import read_image

if TYPE_CHECKING:
    from mmadapter.model import AdaptedModel

GRID = 8  # squares on each side of a picture; what is hidden at a time is two squares wide and high
Texts = Sequence[str]


def looked_at(
    model: AdaptedModel, samples: Sequence[Sample], answers: Texts, settings: TaskSettings
) -> list[dict[str, Any]]:
    """What pictures.json holds of up to `settings.looked_at` samples with a picture, drawn with the task's seed.

    Of each its answer with another picture, the change of its own answer's log-likelihood when a square of its picture
    is hidden, and, with early fusion, its answer's attention to the visual tokens. Where the host is sharded, every
    rank calls this: all ask the same.
    """
    pictured = [number for number, sample in enumerate(samples) if sample.image is not None]
    if model.features is None or not pictured:
        return []
    chosen = random.Random(settings.seed).sample(pictured, min(settings.looked_at, len(pictured)))
    found = []
    for number in sorted(chosen):
        sample, answer = samples[number], answers[number]
        entry: dict[str, Any] = {"id": sample.id, "question": question_of(sample)}
        entry |= {"image": str(sample.image), "answer": answer}
        if (other := with_another_picture(sample, samples, settings.seed)) is not None:
            features = model.features.of([other.image])
            said = model.answer([other], settings.generation, seed=settings.seed, features=features)[0]
            entry["other"] = {"image": str(other.image), "answer": said, "truth": other.meta.get("truth")}
        if answer.strip():
            asked = replace(sample, segments=(*sample.without_answer().segments, Segment(f" {answer}", ANSWER)))
            entry |= {"hidden": when_hidden(model, asked, settings.batch_size)}
            entry |= {"attention": attention_to_tokens(model, asked)}
        found.append(entry)
    return found


def question_of(sample: Sample) -> str:
    """What people read as the question; a caption's prompt has no other name."""
    return str(sample.meta.get("question") or sample.meta.get("instruction") or "")


def truth_of(sample: Sample) -> str | None:
    """The right answer in words, where the task knows one."""
    meta = sample.meta
    if (choices := meta.get("choices")) and isinstance(meta.get("answer"), int):
        return str(choices[meta["answer"]])
    return str(meta.get("answer") or meta.get("output") or "") or next(iter(meta.get("references") or ()), None)


def with_another_picture(sample: Sample, samples: Sequence[Sample], seed: int) -> Sample | None:
    """The sample with the picture of another one; None where there is no other.

    Taken is, where there is one, a picture that is asked the same with another right answer, which is then the truth
    (`meta["truth"]`), if the sample's own choices have it.
    """
    own, choices = truth_of(sample), sample.meta.get("choices")
    others = [one for one in samples if one.image not in (None, sample.image)]
    random.Random(f"{seed} {sample.id}").shuffle(others)
    alike = [one for one in others if question_of(one) == question_of(sample) and truth_of(one) not in (None, own)]
    fitting = [one for one in alike if not choices or truth_of(one) in choices]
    for one in fitting[:1]:
        return replace(sample, image=one.image, meta={**sample.meta, "truth": truth_of(one)})
    return replace(sample, image=others[0].image) if others else None


def when_hidden(model: AdaptedModel, sample: Sample, batch_size: int) -> list[list[float]]:
    """GRID rows of GRID numbers: by how much the log-likelihood of the sample's answer changes, in nats, when the
    picture's mean colour hides it around that square.
    """
    assert model.features is not None and sample.image is not None
    picture = read_image(sample.image)
    colour = tuple(round(value) for value in ImageStat.Stat(picture).mean)
    pictures = [picture]
    for row in range(GRID):
        for column in range(GRID):
            hidden = picture.copy()
            left, right = (round(picture.width * (column + offset) / GRID) for offset in (-0.5, 1.5))
            top, bottom = (round(picture.height * (row + offset) / GRID) for offset in (-0.5, 1.5))
            hidden.paste(colour, (max(0, left), max(0, top), right, bottom))
            pictures.append(hidden)
    values: list[float] = []
    for start in range(0, len(pictures), batch_size):
        values += likelihoods(model, sample, pictures[start : start + batch_size]).tolist()
    whole, *others = values
    changes = [round(value - whole, 4) for value in others]
    return [changes[start : start + GRID] for start in range(0, GRID * GRID, GRID)]


def likelihoods(model: AdaptedModel, sample: Sample, pictures: Sequence[Image.Image]) -> Tensor:
    """(pictures,): the log-likelihood of the sample's answer with each picture."""
    assert model.features is not None
    encoder = model.encoder(model.max_tokens)
    batch = make_batch(encoder.encode_many([sample] * len(pictures)), encoder.pad_id)
    return model.log_likelihood(replace(batch, features=tuple(model.features.encode(pictures))))


def attention_to_tokens(model: AdaptedModel, sample: Sample) -> list[list[float]] | None:
    """Of each layer with early fusion, lowest first, the share of its branch that goes to each visual token: the mean
    over heads and over the tokens that predict the answer. None without early fusion.
    """
    parts = [(place, part) for place, of_place in sorted(model.adapter.parts.items()) for part in of_place]
    looking = [part for _, part in parts if hasattr(part, "attention_to")]
    if not looking or sample.image is None:
        return None
    seen: dict[int, Tensor] = {}

    def keep(number: int, part: Any, inputs: Any) -> None:
        seen[number] = part.attention_to(inputs[1]).mean(1)[0]  # (tokens, visual tokens)

    encoder = model.encoder(model.max_tokens)
    batch = make_batch(encoder.encode_many([sample]), encoder.pad_id).with_features(model.features)
    with ExitStack() as hooks, torch.no_grad():
        for number, part in enumerate(looking):
            hooks.callback(part.register_forward_pre_hook(partial(keep, number)).remove)
        model.log_likelihood(batch)
    rows = [seen[number][batch.rows.to(seen[number].device)].mean(0) for number in range(len(looking))]
    return [[round(value, 5) for value in row.tolist()] for row in rows]
