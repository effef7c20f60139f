"""What a run answers to a few fixed questions while it trains, so that people watch it learn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmadapter.data.samples import Sample
from mmadapter.distributed.ranks import Ranks
from mmadapter.hosts.settings import GenerationConf
from mmadapter.model import AdaptedModel
from mmadapter.runs.journal import Journal
from mmadapter.tasks.asking import generate_answers
from mmadapter.tasks.section import shortened
from mmadapter.tasks.task import Task
from mmadapter.training.determinism import deterministic, random_state, restore_random_state

MOST_TOKENS = 48  # of an answer
DRAWN_FROM = "watched"  # the seed: the same questions in every run on these data


def watched_samples(questions: Mapping[str, Sequence[Sample]], most: int) -> list[tuple[str, Sample]]:
    """Up to `most` questions of the tasks, drawn with a fixed seed, task after task in turn, those with pictures first.

    Returns (task, sample) pairs.
    """
    drawn: list[tuple[bool, int, int, str, Sample]] = []
    for place, (name, asked) in enumerate(sorted(questions.items())):
        order = random.Random(f"{DRAWN_FROM} {name}")
        shuffled = order.sample(asked, len(asked))
        shuffled.sort(key=lambda sample: sample.image is None)
        drawn += [(one.image is None, turn, place, name, one) for turn, one in enumerate(shuffled[:most])]
    drawn.sort(key=lambda one: one[:3])
    return [(name, sample) for *_, name, sample in drawn[:most]]


class WatchedAnswers:
    """Asks the model the same few questions again and again, writes the answers into the journal, shows the first.

    Greedy and short: with four questions of one task at most `MOST_TOKENS` calls of the host. No random number of the
    training moves. Collective, as all asking is.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tasks: Mapping[str, Task[Any]],
        questions: Mapping[str, Sequence[Sample]],
        most: int,
        ranks: Ranks,
        asks_deterministically: bool = False,
    ) -> None:
        self.model, self.ranks, self.tasks = model, ranks, tasks
        self.samples = watched_samples(questions, most)
        self.asks_deterministically = asks_deterministically

    def write(self, step: int, journal: Journal, say: Callable[[str], None]) -> None:
        """The answers after `step` steps, as one record of the journal; the first one is said, too."""
        if not self.samples:
            return
        was_training, random_numbers = self.model.training, random_state()
        self.model.eval()
        try:
            with deterministic(self.asks_deterministically, strictly=False):
                answers = [
                    answer for name in dict.fromkeys(name for name, _ in self.samples) for answer in self._of(name)
                ]
        finally:
            self.model.train(was_training)
            restore_random_state(*random_numbers)
        records = [
            {
                "sample": sample.id,
                "task": name,
                "image": None if sample.image is None else str(sample.image),
                **self.tasks[name].judged(sample, answer),
            }
            for name, sample, answer in answers
        ]
        journal.write("answers", {"step": step, "samples": records})
        say(answer_text(step, records[0]))

    def _of(self, name: str) -> list[tuple[str, Sample, str]]:
        samples = [sample for task, sample in self.samples if task == name]
        settings = self.tasks[name].settings
        most = min(settings.generation.max_new_tokens, MOST_TOKENS)
        settings = replace(
            settings, generation=GenerationConf(max_new_tokens=most), batch_size=min(settings.batch_size, len(samples))
        )
        answers = generate_answers(self.model, samples, settings, self.ranks)
        return [(name, sample, answer) for sample, answer in zip(samples, answers, strict=True)]


def answer_text(step: int, record: Mapping[str, Any]) -> str:
    """One answer in a line or two: step, question, answer, and what would be right."""
    mark = {True: " ✓", False: " ✗", None: ""}[record["right"]]
    asked = " ".join(str(record["question"]).split())
    answer, reference = " ".join(record["answer"].split()), "".join(record["references"][:1])
    told = "" if record["right"] or not reference else f"\n  reference: {shortened(' '.join(reference.split()), 150)}"
    about = "" if record["image"] is None else f" [{record['image']}]"
    said = shortened(answer, 200) or "(nothing)"
    return f"answer at step {step}: {shortened(asked, 150)}{about}\n  -> {said}{mark}{told}"
