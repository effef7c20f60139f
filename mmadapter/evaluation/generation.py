"""Answers of an assistant to samples: generated texts and option likelihoods, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mmadapter.data.similar_lengths import batches_by_length
from mmadapter.errors import InputError

Progress = Callable[[str, int, int], None]
"""Called as progress("what is going on", done, total)."""


def generate_answers(
    assistant: Any, samples: Sequence[Any], task: Any, *, progress: Progress | None = None
) -> list[str]:
    """One text a sample, in the samples' order, with the task's generation settings and seed."""
    from mmadapter.assistant import GenerationSettings

    wanted = task.generation
    settings = GenerationSettings(
        max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature, top_p=wanted.top_p, beams=wanted.beams
    )
    outputs = [""] * len(samples)
    done = 0
    for indices in batches_by_length([len(sample.prompt) for sample in samples], task.batch_size):
        texts = assistant.generate([samples[index] for index in indices], settings, seed=task.seed)
        for index, text in zip(indices, texts, strict=True):
            outputs[index] = text
        done += len(indices)
        if progress:
            progress("answers", done, len(samples))
    return outputs


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
    log-probabilities are comparable as sums.
    """
    from mmadapter.data.batches import make_batch
    from mmadapter.data.samples import ANSWER, Segment
    from mmadapter.data.tokens import SampleEncoder

    encoder = SampleEncoder(assistant.tokenizer, assistant.max_tokens)
    owners = [(place, index) for place, sample in enumerate(samples) for index in range(len(sample.meta["choices"]))]
    candidates = [
        replace(samples[place], segments=(*samples[place].segments, Segment(option_answer(index), ANSWER)))
        for place, index in owners
    ]
    encoded = encoder.encode_many(candidates)
    best: list[tuple[float, int]] = [(-float("inf"), 0)] * len(samples)
    done = 0
    for indices in batches_by_length([len(item.ids) for item in encoded], task.batch_size):
        values = assistant.log_likelihood(make_batch([encoded[index] for index in indices], encoder.pad_id))
        for item, value in zip(indices, values.tolist(), strict=True):
            place, option = owners[item]
            if (value, -option) > (best[place][0], -best[place][1]):
                best[place] = (value, option)
        done += len(indices)
        if progress:
            progress("option likelihoods", done, len(encoded))
    return [option for _, option in best]
