"""What a task is, and the evaluation of a model in one: read, ask, parse, score, write.

No torch is imported before a model is asked, so that files of predictions are scored without it.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypedDict, TypeVar

from mmadapter.data.readers import read
from mmadapter.data.readers.pictures import with_attached_images
from mmadapter.data.samples import CONTEXT, INSTRUCTION, Sample
from mmadapter.data.settings import InstructionSettings
from mmadapter.data.templates import SINGLE
from mmadapter.errors import InputError
from mmadapter.files import LARGEST_NUMBER, package_versions, write_json, write_json_lines
from mmadapter.tasks.section import PICTURES_FILE, Card, Result, Row, Section, Table, percent, shortened
from mmadapter.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from mmadapter.distributed.ranks import Ranks
    from mmadapter.model import AdaptedModel

Settings = TypeVar("Settings", bound=TaskSettings)
Progress = Callable[[str, int, int], None]
"""Called as progress("what is going on", done, total)."""
CARDS = 12  # samples that are shown
PACKAGES = ("mmadapter", "torch", "transformers", "open_clip_torch")


@dataclass(frozen=True)
class Answers:
    """What a model says to the samples of a task, in their order."""

    texts: Sequence[str]
    options: Sequence[int] | None = None  # the likeliest option of each, where the task asks for it


@dataclass(frozen=True)
class Scored:
    """The results of one evaluation."""

    metrics: dict[str, Any]  # metrics.json
    rows: list[dict[str, Any]]  # predictions.jsonl
    files: Mapping[str, Any] = field(default_factory=dict)  # name -> content of further JSON files

    def write(self, folder: Path) -> None:
        """Write FOLDER/predictions.jsonl, metrics.json and the task's own files, each whole or not at all."""
        write_json_lines(folder / "predictions.jsonl", self.rows)
        for name, content in self.files.items():
            write_json(folder / name, content)
        write_json(folder / "metrics.json", self.metrics)


class Metrics(TypedDict, total=False):
    """What is read of metrics.json when results are shown, besides the scores."""

    by_attribute: dict[str, dict[str, float | None]]


class Covered(TypedDict, total=False):
    """`coverage` of metrics.json."""

    complete: bool


class AnswerRow(TypedDict, total=False):
    """What is read of a line of predictions.jsonl when results are shown."""

    id: str
    instruction: str | None
    image: str | None
    output: str | None
    reference: str | None


class Task(Generic[Settings]):
    """A benchmark. A class of its own says at least how answers are scored (`score`) and names its scores (`SCORES`).

    What needs settings is a method; what is made of a metrics.json alone (values, tables) is a class method.
    """

    TITLE: ClassVar[str]  # as tables and reports call it
    SCORES: ClassVar[tuple[str, ...]] = ()  # keys of metrics.json
    MAIN_SCORES: ClassVar[tuple[str, ...]] = ()  # those that tables of several runs show; the first is the task's score
    IN_SUMMARY: ClassVar[tuple[str, ...]] = ()  # what else of metrics.json stands in summary.json
    METRICS: ClassVar[Any] = Metrics  # a TypedDict: what `values`, `section` and `remark` read of metrics.json
    ROW: ClassVar[Any] = AnswerRow  # and `card` of a line of predictions.jsonl; what is of another type is not shown
    PACKAGES: ClassVar[tuple[str, ...]] = ()  # whose versions decide the scores, too

    def __init__(self, settings: Settings, data_root: str | None = None) -> None:
        self.settings = settings
        self.data_root = data_root  # what is read where the settings name no place

    # With a model.

    def read(
        self, tokenizer: Any = None, trained: str | None = None, system: str | None = None, key: str | None = None
    ) -> list[Sample]:
        """The samples to ask, without answers, in the template of the settings, or in `trained`, that of the training
        (None: the reader's own default).

        `tokenizer` is the host's; `system` is the training's system text, for items without one of their own; `key` is
        where the settings stand, for messages.
        """
        settings = self.settings
        reader, key = settings.as_reader(), key or f"tasks.{settings.name}"
        if getattr(settings, "template", "") is None and trained is not None:
            setattr(reader, "template", trained)  # noqa: B010  (not every reader has one)
        if isinstance(reader, InstructionSettings) and reader.system is None and reader.template not in SINGLE:
            reader.system = system
        samples = read(reader, self.data_root, source=settings.name, training=False, key=key, tokenizer=tokenizer)
        if settings.attach_images is None:
            return samples
        if not settings.images:
            raise InputError(
                f"task {settings.name}: attach_images={settings.attach_images}, but images=false, or the run has no "
                "image encoder. Set images=true for a run with pictures, or attach_images=null."
            )
        return with_attached_images(samples, Path(settings.attach_images).expanduser())

    def ask(
        self, model: AdaptedModel, samples: Sequence[Sample], ranks: Ranks, progress: Progress | None = None
    ) -> Answers:
        """What the model says to each sample. Collective: the ranks share the samples out."""
        from mmadapter.tasks.asking import generate_answers

        return Answers(generate_answers(model, samples, self.settings, ranks, progress))

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        """The scores of a model's answers."""
        raise NotImplementedError

    def judged(self, sample: Sample, answer: str) -> dict[str, Any]:
        """One question and its answer for people: question, answer, references, and whether it is right (None: such
        answers are not right or wrong).
        """
        meta = sample.meta
        references = meta.get("references") or [meta[key] for key in ("output", "answer") if meta.get(key) is not None]
        question = meta.get("instruction") or "".join(
            segment.text for segment in sample.segments if segment.kind in (INSTRUCTION, CONTEXT)
        )
        found = {"question": question or sample.prompt, "answer": answer, "references": list(map(str, references))}
        return found | {"right": None}

    # Without a model.

    def score_file(self, file: Path) -> Scored:
        """The scores of a file of predictions; for tasks whose settings say that they can (`prediction_problems`)."""
        raise NotImplementedError

    def scores(self) -> list[str]:
        """The scores that these settings give, the main ones first; none where nothing will be scored."""
        return list(dict.fromkeys([*self.MAIN_SCORES, *self.SCORES]))

    def why_no_score(self, score: str, key: str) -> str | None:
        """Why these settings (at `key`) give no score of that name, and how to get it; None: there is no such score."""
        return None

    # From metrics.json.

    @classmethod
    def values(cls, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The scores that a metrics.json has, the main ones first."""
        found = {name: metrics.get(name) for name in dict.fromkeys([*cls.MAIN_SCORES, *cls.SCORES])}
        return {name: one for name, one in found.items() if isinstance(one, int | float) and abs(one) <= LARGEST_NUMBER}

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What of a metrics.json stands in summary.json."""
        return {name: metrics[name] for name in (*cls.SCORES, *cls.IN_SUMMARY) if name in metrics}

    @classmethod
    def section(cls, results: Sequence[Result], with_papers: bool = True) -> Section:
        """What terminal and report show of the last of `results`, beside the others; the papers' numbers where they are
        asked for and the data are those of the papers.
        """
        scored = {one.label: cls.values(one.metrics) for one in results}
        names = [name for name in cls.SCORES if any(name in values for values in scored.values())]
        rows = [Row([label, *(percent(values.get(name)) for name in names)]) for label, values in scored.items()]
        tables = [Table(["", *names], rows, main=cls.MAIN_SCORES)] if names else []
        tables += attribute_tables(results, names)
        cards = [cls.card(row) for row in drawn(results[-1].rows)]
        return Section(cls.TITLE, tables=tables, cards=cards, cards_remark=cls.remark(results[-1].metrics))

    @classmethod
    def card(cls, row: Mapping[str, Any]) -> Card:
        """A sample with its answer, of a line of predictions.jsonl."""
        return Card(
            question=shortened(row.get("instruction") or row.get("id", ""), 300),
            picture=row.get("image"),
            answer=shortened(row.get("output"), 500),
            foot=[f"reference: {shortened(row['reference'], 300)}"] if row.get("reference") else [],
        )

    @classmethod
    def remark(cls, metrics: Mapping[str, Any]) -> str:
        """What should be known of the samples that are shown."""
        return ""


def attribute_tables(results: Sequence[Result], names: Sequence[str]) -> list[Table]:
    """The last run's scores of the samples that ask for each attribute, where its metrics have them."""
    by_attribute = results[-1].metrics.get("by_attribute") or {}
    rows = [Row([name, *(percent(scores.get(one)) for one in names)]) for name, scores in by_attribute.items()]
    return [Table(["attribute", *names], rows, "By attribute", is_folded=True)] if rows and names else []


def drawn(rows: Sequence[Mapping[str, Any]], count: int = CARDS) -> list[Mapping[str, Any]]:
    """The samples that are shown: drawn with a fixed seed, whatever the answers are."""
    return random.Random("shown").sample(list(rows), min(count, len(rows)))


def evaluate(
    model: AdaptedModel,
    task: Task[Any],
    samples: Sequence[Sample],
    folder: Path,
    ranks: Ranks,
    progress: Progress | None = None,
) -> Scored:
    """Ask the model every sample of a task (as `task.read` gave them), score, and write the results into `folder`.

    Collective: the ranks share the samples out; rank 0 scores and writes, and alone has the rows.
    """
    from mmadapter.tasks.asking import cut_prompts
    from mmadapter.tasks.pictures import looked_at

    settings = task.settings
    if not samples:
        raise InputError(
            f"task {settings.name}: there is no sample to evaluate in split {settings.split}. Check task.split."
        )
    if ranks.is_first:  # before the work, so that a place that cannot be written to shows early
        folder.mkdir(parents=True, exist_ok=True)

    # Ask, in evaluation mode.
    cut = cut_prompts(model, samples, settings)
    started = time.perf_counter()
    if was_training := model.training:
        model.eval()
    try:
        answers = task.ask(model, samples, ranks, progress)
        pictures = looked_at(model, samples, answers.texts, settings)
    finally:
        if was_training:
            model.train()

    # Score and write, on rank 0.
    seconds = round(time.perf_counter() - started, 2)
    rows: list[dict[str, Any]] = []

    def score() -> dict[str, Any]:
        scored = task.score(samples, answers)
        facts = {"cut_prompts": cut, "seconds": seconds}
        scored = replace(scored, metrics=with_versions(task, scored.metrics) | facts)
        if pictures:
            scored = replace(scored, files={**scored.files, PICTURES_FILE: pictures})
        scored.write(folder)
        rows.extend(scored.rows)
        return scored.metrics

    metrics = ranks.decide(score)
    return Scored(metrics, rows)


def with_versions(task: Task[Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the task's name, and what the numbers depend on: Python and packages, none of it imported."""
    found = {"python": platform.python_version()} | package_versions((*PACKAGES, *task.PACKAGES))
    return {"task": task.settings.name, **metrics, "versions": found}
