"""A run folder as pages show it; what is missing (unfinished run, no evaluation) reads as empty."""

from __future__ import annotations

from functools import cached_property

from mmadapter.files import read_json, read_json_lines
from mmadapter.runs.state import Record, RunFolder


class ReportedRun(RunFolder):
    """A run with all its evaluations, later ones of eval.py too, and the runs inside it."""

    @cached_property
    def config_text(self) -> str:
        file = self.folder / "config.yaml"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @cached_property
    def summary(self) -> Record:
        """summary.json, which is there before the report is written and the run counts as finished."""
        return read_json(self.folder / "summary.json") or read_json(self.folder / "finished.json") or {}

    @cached_property
    def versions(self) -> Record:
        return read_json(self.folder / "versions.json") or {}

    @cached_property
    def trainable(self) -> list[Record]:
        """The rows of the table of what trains."""
        return read_json(self.folder / "trainable.json") or []

    @cached_property
    def evaluations(self) -> dict[str, Record]:
        """Name in eval/ -> metrics.json."""
        found = {file.parent.name: read_json(file) for file in sorted(self.folder.glob("eval/*/metrics.json"))}
        return {name: metrics for name, metrics in found.items() if metrics}

    def predictions(self, name: str) -> list[Record]:
        """The lines of eval/NAME/predictions.jsonl."""
        return read_json_lines(self.folder / "eval" / name / "predictions.jsonl")

    @cached_property
    def comparison(self) -> dict[str, ReportedRun]:
        return self._runs_in("comparison")

    @cached_property
    def variants(self) -> dict[str, ReportedRun]:
        return self._runs_in("variants")

    def _runs_in(self, part: str) -> dict[str, ReportedRun]:
        """Runs by name, in the order of the settings."""
        found = {path.name: path for path in sorted(self.folder.glob(f"{part}/*")) if path.is_dir()}
        named = [name for name in self.config.get(part) or () if name in found]
        return {name: ReportedRun(found[name]) for name in dict.fromkeys([*named, *found])}
