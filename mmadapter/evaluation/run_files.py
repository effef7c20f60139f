"""What a run folder holds, read for the report; whatever is missing (unfinished run, no evaluation) reads as empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass
class Evaluation:
    """The results of one task."""

    metrics: Record
    predictions: list[Record]


@dataclass
class RunFiles:
    """The readable content of one run folder; `comparison` and `variants` are run folders inside it."""

    folder: Path
    config_text: str = ""
    config: Record = field(default_factory=dict)
    versions: Record = field(default_factory=dict)
    trainable: list[Record] = field(default_factory=list)
    train: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    summary: Record = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    comparison: dict[str, RunFiles] = field(default_factory=dict)
    variants: dict[str, RunFiles] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def with_images(self) -> bool:
        return bool((self.config.get("vision") or {}).get("enabled"))

    def accuracy(self, task: str = "scienceqa") -> Mapping[str, float | None] | None:
        """The score columns of a task, None where it was not evaluated."""
        evaluation = self.evaluations.get(task)
        return evaluation.metrics.get("accuracy") if evaluation else None

    @property
    def best_validation_loss(self) -> float | None:
        losses = [record["loss"] for record in self.validation if record["loss"] is not None]  # null: not finite
        return min(losses, default=None)


def read_run(folder: Path, *, whole: bool = True) -> RunFiles:
    """Reads a run folder and the runs in its comparison/ and variants/; not `whole`: neither those nor predictions."""
    import yaml

    folder = Path(folder)
    config_text = _text(folder / "config.yaml")
    records = _lines(folder / "metrics.jsonl")
    trainable = _json(folder / "trainable.json")
    run = RunFiles(
        folder=folder,
        config_text=config_text,
        config=yaml.safe_load(config_text) or {} if config_text else {},
        versions=_json(folder / "versions.json") or {},
        trainable=trainable if isinstance(trainable, list) else [],
        summary=_json(folder / "summary.json") or _json(folder / "finished.json") or {},
    )
    for kind, into in (("train", run.train), ("validation", run.validation), ("event", run.events)):
        into += [record for record in records if record.get("kind") == kind]
    for path in sorted(folder.glob("eval/*/metrics.json")):
        metrics = _json(path)
        if isinstance(metrics, dict):
            predictions = _lines(path.with_name("predictions.jsonl")) if whole else []
            run.evaluations[path.parent.name] = Evaluation(metrics, predictions)
    if not whole:
        return run
    run.comparison = {path.name: read_run(path) for path in sorted(folder.glob("comparison/*")) if path.is_dir()}
    order = list(run.config.get("variants") or ())
    variants = {path.name: path for path in sorted(folder.glob("variants/*")) if path.is_dir()}
    named = [name for name in order if name in variants]
    run.variants = {name: read_run(variants[name]) for name in dict.fromkeys([*named, *variants])}
    return run


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except ValueError:  # half-written by a run that is going on
        return None


def _lines(path: Path) -> list[Record]:
    found = []
    for line in _text(path).split("\n"):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
