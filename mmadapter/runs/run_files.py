"""What a run folder holds, read for tables and pages; a missing or half-written file reads as empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmadapter.files import read_json
from mmadapter.runs.journal import read_metrics

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

    @property
    def best_validation_loss(self) -> float | None:
        losses = [record["loss"] for record in self.validation if record["loss"] is not None]  # null: not finite
        return min(losses, default=None)


def read_run(folder: Path, *, whole: bool = True) -> RunFiles:
    """Reads a run folder and the runs in its comparison/ and variants/; not `whole`: neither those nor predictions."""
    folder = Path(folder)
    config_file = folder / "config.yaml"
    config_text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    run = RunFiles(
        folder=folder,
        config_text=config_text,
        config=yaml.safe_load(config_text) or {},
        versions=read_json(folder / "versions.json") or {},
        trainable=read_json(folder / "trainable.json") or [],
        summary=read_json(folder / "summary.json") or read_json(folder / "finished.json") or {},
    )
    records = read_metrics(folder / "metrics.jsonl")
    for kind, into in (("train", run.train), ("validation", run.validation), ("event", run.events)):
        into += [record for record in records if record.get("kind") == kind]
    for path in sorted(folder.glob("eval/*/metrics.json")):
        if metrics := read_json(path):
            predictions = read_metrics(path.with_name("predictions.jsonl")) if whole else []
            run.evaluations[path.parent.name] = Evaluation(metrics, predictions)
    if whole:
        order = list(run.config.get("variants") or ())
        for kind, runs in (("comparison", run.comparison), ("variants", run.variants)):
            found = {path.name: path for path in sorted(folder.glob(f"{kind}/*")) if path.is_dir()}
            named = [name for name in order if name in found]
            runs |= {name: read_run(found[name]) for name in dict.fromkeys([*named, *found])}
    return run
