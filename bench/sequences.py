"""The samples that are trained on, and the batches of a few steps, in our order and as they are drawn."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmadapter.data.mixture import WINDOW, LengthBucketedOrder
from mmadapter.data.readers import read
from mmadapter.data.samples import ANSWER, INSTRUCTION, TEMPLATE, Sample, Segment
from mmadapter.data.settings import AlpacaSettings
from mmadapter.data.tokens import Encoded, SampleEncoder
from mmadapter.hosts.load import load_tokenizer

BEGIN, END = 1, 2  # begin-of-text and end-of-text of made samples
HEADS = ((29, 0.6), (39, 0.4))  # tokens of Alpaca's frame without and with an input, and their shares
TAIL = 5  # tokens of "### Response:"
# Medians and spreads (of the logarithm) of instruction and answer: 110 tokens a sample on average, 50 of them learned,
# 4 % of the samples above 256 tokens and 0.5 % above 512.
INSTRUCTION_TOKENS, ANSWER_TOKENS = (17, 0.7), (28, 1.1)
Steps = list[list[Encoded]]


@dataclass(frozen=True)
class Batches:
    """The same samples in two orders, and the batch that every contender sees first."""

    first: list[Encoded]
    sorted: Steps  # as our data order has them: each batch of similar lengths
    drawn: Steps  # as a plain shuffle has them

    def of(self, order: str, warmup: int) -> Steps:
        """The batches of warm-up and measured steps."""
        return [self.first] * warmup + (self.sorted if order == "sorted" else self.drawn)


def made_samples(vocabulary: int, longest: int, count: int = WINDOW, seed: int = 0) -> list[Encoded]:
    """Samples of random tokens with the lengths of Alpaca's and with its two frames, the same tokens in each sample."""
    drawn = random.Random(seed)

    def tokens(number: int) -> list[int]:
        return [drawn.randrange(8, vocabulary) for _ in range(number)]

    scale = min(1.0, longest / 512)  # of small shapes
    heads = [[BEGIN, *tokens(max(2, round(length * scale)))] for length, _ in HEADS]
    tail = tokens(max(1, round(TAIL * scale)))
    samples = []
    for number in range(count):
        head = drawn.choices(heads, [share for _, share in HEADS])[0]
        sizes = [
            max(1, round(scale * drawn.lognormvariate(0, spread) * median))
            for median, spread in (INSTRUCTION_TOKENS, ANSWER_TOKENS)
        ]
        asked = [*head, *tokens(sizes[0]), *tail][: longest - 2]
        ids = [*asked, *tokens(sizes[1]), END][:longest]
        pieces = (Segment("frame", TEMPLATE), Segment("made", INSTRUCTION), Segment("made", ANSWER))
        sample = Sample(str(number), "bench", pieces, None, f"made sample {number}")
        samples.append(Encoded(sample, array("i", ids), ((len(asked), len(ids)),)))
    return samples


def alpaca_samples(host: Path, longest: int, count: int = WINDOW, seed: int = 0) -> list[Encoded]:
    """Real Alpaca samples in the host's template, read and encoded as a training does."""
    file = Path(os.environ["MMADAPTER_REFERENCE_DATA"]) / "alpaca" / "alpaca_first2500.json"
    tokenizer = load_tokenizer(host)
    settings = AlpacaSettings(path=str(file), split="all", template="alpaca")
    found = read(settings, source="bench", training=True, images=False, tokenizer=tokenizer)
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return SampleEncoder(tokenizer, longest, "cut").encode_many(chosen)


def batches_of(samples: Sequence[Encoded], batch: int, steps: int, seed: int = 0) -> Batches:
    """`steps` batches out of a window of `samples`, over all lengths, from short to long alike.

    Our order cuts the window into batches of similar lengths; taken are as many as there are steps, evenly spread.
    Their samples, shuffled, are also the batches as drawn: so both orders have the same tokens to learn from.
    """
    order = LengthBucketedOrder([len(item.ids) for item in samples], batch, seed)
    batches = [order.batch_indices(0, number) for number in range(len(samples) // batch)]
    batches.sort(key=lambda indices: len(samples[indices[-1]].ids))
    taken = [batches[int((step + 0.5) * len(batches) / steps)] for step in range(steps)]
    random.Random(seed).shuffle(taken)
    shuffled = [index for indices in taken for index in indices]
    random.Random(seed + 1).shuffle(shuffled)
    drawn = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    by_index = [[[samples[index] for index in indices] for indices in listed] for listed in (taken, drawn)]
    return Batches(by_index[1][0], *by_index)


def real_tokens(step: Sequence[Encoded]) -> int:
    return sum(len(item.ids) for item in step)
