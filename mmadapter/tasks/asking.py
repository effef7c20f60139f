"""How a model is asked: samples in batches of similar length, shared out over the ranks; texts and likelihoods.

The batches are those of one process, so the answers are too, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from mmadapter.data.batches import batches_by_length, make_batch
from mmadapter.data.forest import make_forest_batch
from mmadapter.data.samples import Sample
from mmadapter.data.templates import Segments
from mmadapter.errors import InputError
from mmadapter.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from mmadapter.distributed.ranks import Ranks
    from mmadapter.model import AdaptedModel
    from mmadapter.tasks.task import Progress

Answer = TypeVar("Answer")


def generate_answers(
    model: AdaptedModel,
    samples: Sequence[Sample],
    settings: TaskSettings,
    ranks: Ranks,
    progress: Progress | None = None,
) -> list[str]:
    """One text a sample, in the samples' order, with the task's generation settings and seed. Collective."""

    def ask(indices: Sequence[int], visual: bool | None) -> list[str]:
        batch = [samples[index] for index in indices]
        features = None if model.features is None else model.features.of([sample.image for sample in batch])
        return model.answer(
            batch, settings.generation, settings.seed, features, visual=visual, at_once=settings.batch_size
        )

    lengths = [len(sample.prompt) for sample in samples]
    size = model.asked_together(settings.generation, settings.batch_size)
    return ask_in_batches(ask, lengths, samples, size, ranks, model.in_step, "answers", progress)


def cut_prompts(model: AdaptedModel, samples: Sequence[Sample], settings: TaskSettings) -> int:
    """How many prompts do not fit beside the answer's `max_new_tokens` and are cut.

    Raises InputError where that leaves no room, or a template alone is longer.
    """
    room = model.max_tokens - settings.generation.max_new_tokens
    if room < 1:
        raise InputError(
            f"task {settings.name}: generation.max_new_tokens={settings.generation.max_new_tokens} leaves no room for "
            f"a prompt in host.max_tokens={model.max_tokens}. Lower the one, or raise the other."
        )
    encoder = model.encoder(room)
    encoder.encode_many(samples)
    return encoder.cut_samples


def most_likely_options(
    model: AdaptedModel,
    samples: Sequence[Sample],
    options: Sequence[Sequence[Segments]],
    settings: TaskSettings,
    ranks: Ranks,
    progress: Progress | None = None,
) -> list[int]:
    """For each sample the one of its `options` (answers) that the model finds most likely, the first on a tie.

    The candidates of a sample are compared by the sums of their log-probabilities: they should be equally long.
    Collective.
    """
    encoder = model.encoder(model.max_tokens)
    owners = [(place, option) for place, answers in enumerate(options) for option in range(len(answers))]
    candidates = [
        replace(samples[place], segments=(*samples[place].segments, *options[place][option]))
        for place, option in owners
    ]
    encoded = encoder.encode_many(candidates)
    # Candidates of one question are equally long, or nearly so, and stand side by side: a forest has the question once.
    as_forest = not model.in_step and model.without_forest(learning=model.training) is None

    def ask(indices: Sequence[int], visual: bool | None) -> list[float]:
        rows = [encoded[index] for index in indices]
        batch = make_forest_batch(rows) if as_forest else make_batch(rows, encoder.pad_id)
        return model.log_likelihood(replace(batch, visual=visual).with_features(model.features)).tolist()

    lengths, size = [len(item.ids) for item in encoded], settings.batch_size
    values = ask_in_batches(ask, lengths, candidates, size, ranks, model.in_step, "option likelihoods", progress)
    best: list[tuple[float, int]] = [(-float("inf"), 0)] * len(samples)
    for (place, option), value in zip(owners, values, strict=True):
        best[place] = max(best[place], (value, -option))
    return [-option for _, option in best]


def ask_in_batches(
    ask: Callable[[Sequence[int], bool | None], Sequence[Answer]],
    lengths: Sequence[int],
    samples: Sequence[Sample],
    batch_size: int,
    ranks: Ranks,
    in_step: bool = False,
    what: str = "",
    progress: Progress | None = None,
) -> list[Answer]:
    """The answers to all samples, in their order, on every rank. Collective; rank 0 shows the progress.

    In each round every rank asks one batch: `ask(indices, visual)` gives one answer an index. Where the ranks
    are `in_step` (a sharded host), all ask equally often, the last ones the shortest sample once more if need be; then
    `visual` says whether any of them has a picture in this round, and is None elsewhere.
    """
    batches = list(batches_by_length(lengths, batch_size))
    mine: dict[int, Answer] = {}
    done = 0
    for start in range(0, len(batches), ranks.world_size):
        round_ = batches[start : start + ranks.world_size]
        visual = any(samples[index].image is not None for batch in round_ for index in batch) if in_step else None
        if ranks.rank < len(round_):
            own = round_[ranks.rank]
            mine |= dict(zip(own, ask(own, visual), strict=True))
        elif in_step:
            ask(batches[-1][-1:], visual)
        done += sum(map(len, round_))
        if progress and ranks.is_first:
            progress(what, done, len(lengths))
    answers = {index: answer for part in ranks.gather(list(mine.items())) for index, answer in part}
    return [answers[index] for index in sorted(answers)]
