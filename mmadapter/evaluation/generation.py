"""Answers of an assistant to samples: generated texts and option likelihoods, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmadapter.errors import InputError

if TYPE_CHECKING:  # needs torch, which scoring files does without
    from mmadapter.evaluation.shared_out import OwnBatch

Progress = Callable[[str, int, int], None]
"""Called as progress("what is going on", done, total)."""


@dataclass(frozen=True)
class Answers:
    """What an assistant says to the samples of a task, in their order."""

    texts: list[str]
    options: list[int] | None = None
    """The likeliest option of each question, where the task asks for it."""


def generate_answers(
    assistant: Any, samples: Sequence[Any], task: Any, *, progress: Progress | None = None
) -> list[str]:
    """One text a sample, in the samples' order, with the task's generation settings and seed. Collective."""
    from mmadapter.evaluation.shared_out import answers_of_all, own_batches

    settings = task.generation

    def ask(batch: OwnBatch) -> list[str]:
        return assistant.answer([samples[i] for i in batch.indices], settings, seed=task.seed, visual=batch.visual)

    lengths = [len(sample.prompt) for sample in samples]
    batches = own_batches(lengths, _images(samples), task.batch_size, _in_step(assistant))
    return answers_of_all(ask, batches, _told(progress, "answers", len(samples)))


def cut_prompts(assistant: Any, samples: Sequence[Any], task: Any) -> int:
    """How many prompts do not fit beside the answer's `max_new_tokens` and are cut.

    Raises InputError where that leaves no room, or a template alone is longer.
    """
    from mmadapter.data.tokens import SampleEncoder

    room = assistant.max_tokens - task.generation.max_new_tokens
    if room < 1:
        raise InputError(
            f"task {task.name}: generation.max_new_tokens={task.generation.max_new_tokens} leaves no room for a prompt "
            f"in host.max_tokens={assistant.max_tokens}. Lower the one, or raise the other."
        )
    encoder = SampleEncoder(assistant.tokenizer, room)
    encoder.encode_many(samples)
    return encoder.cut_samples


def option_answer(index: int) -> str:
    """The answer segment of option `index`, as training data words it."""
    return f" The answer is {chr(ord('A') + index)}."


def most_likely_options(
    assistant: Any, samples: Sequence[Any], task: Any, *, progress: Progress | None = None
) -> list[int]:
    """For each question the option whose answer sentence the model finds most likely (the first one on a tie).

    All candidates of a question are the same prompt with `option_answer`, one letter apart, so their
    log-probabilities are comparable as sums. Collective.
    """
    from mmadapter.data.batches import make_batch
    from mmadapter.data.samples import ANSWER, Segment
    from mmadapter.data.tokens import SampleEncoder
    from mmadapter.evaluation.shared_out import answers_of_all, own_batches

    encoder = SampleEncoder(assistant.tokenizer, assistant.max_tokens)
    owners = [(place, index) for place, sample in enumerate(samples) for index in range(len(sample.meta["choices"]))]
    candidates = [
        replace(samples[place], segments=(*samples[place].segments, Segment(option_answer(index), ANSWER)))
        for place, index in owners
    ]
    encoded = encoder.encode_many(candidates)

    def ask(batch: OwnBatch) -> list[float]:
        rows = make_batch([encoded[index] for index in batch.indices], encoder.pad_id)
        return assistant.log_likelihood(replace(rows, visual=batch.visual)).tolist()

    lengths = [len(item.ids) for item in encoded]
    batches = own_batches(lengths, _images(candidates), task.batch_size, _in_step(assistant))
    values = answers_of_all(ask, batches, _told(progress, "option likelihoods", len(encoded)))
    best: list[tuple[float, int]] = [(-float("inf"), 0)] * len(samples)
    for (place, option), value in zip(owners, values, strict=True):
        if (value, -option) > (best[place][0], -best[place][1]):
            best[place] = (value, option)
    return [option for _, option in best]


def _in_step(assistant: Any) -> bool:
    from mmadapter.processes import here

    return here().count > 1 and assistant.in_step


def _images(samples: Sequence[Any]) -> list[bool]:
    return [sample.image is not None for sample in samples]


def _told(progress: Progress | None, what: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(what, done, total)
