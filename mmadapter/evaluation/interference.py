"""What learning captions costs: the arms of experiment=interference over several seeds, as one page and one table.

python -m mmadapter.evaluation.interference runs/interference-A runs/interference-B --output DIR
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.evaluation.dot_plots import dot_plot
from mmadapter.evaluation.run_files import RunFiles, read_run
from mmadapter.files import write_atomically

Values = dict[int, float]
"""Seed -> value."""


@dataclass(frozen=True)
class Arm:
    """A variant of the experiment; `reference` saw the same instructions and no caption."""

    name: str
    label: str
    reference: str | None
    colour: int


@dataclass(frozen=True)
class Measure:
    """A number of one task's metrics.json; a `change` is its difference from `of` of the arm's reference."""

    name: str
    label: str
    task: str
    keys: tuple[str, ...]
    of: str | None = None


ARMS = (
    Arm("v1_base", "V1, instructions", None, 0),
    Arm("v1_continued", "V1, more instructions", None, 0),
    Arm("v1_then_captions", "(a) V1, then captions", "v1_continued", 6),
    Arm("v1_mixed", "(b) V1, mixed", "v1_continued", 3),
    Arm("v2_base", "V2, instructions", None, 0),
    Arm("v2_continued", "V2, more instructions", None, 0),
    Arm("v2", "(c) V2", "v2_continued", 1),
    Arm("v2_late", "(d) V2, no early fusion", "v2_continued", 2),
    Arm("v2_shared", "(e) V2, shared groups", "v2_continued", 4),
)
MEASURES = (
    Measure("cider", "captions: CIDEr", "coco_caption", ("CIDEr",)),
    Measure("bleu4", "captions: BLEU-4", "coco_caption", ("BLEU-4",)),
    Measure("following", "(i) instructions, no picture: exact, %", "instruct", ("exact_match",)),
    Measure(
        "following_change", "(i) change against instructions alone", "instruct", ("exact_match",), of="following"
    ),
    Measure(
        "with_picture", "(ii) instructions, irrelevant picture: exact, %", "instruct_with_picture", ("exact_match",)
    ),
    Measure(
        "with_picture_change",
        "(ii) change against instructions alone",
        "instruct_with_picture",
        ("exact_match",),
        of="following",
    ),
    Measure("open_followed", "(iii) open visual instructions: followed, %", "visual_instruct", ("followed",)),
    Measure("open_named", "(iii) open visual instructions: right word, %", "visual_instruct", ("named",)),
    Measure("scienceqa", "ScienceQA format, likeliest option, %", "scienceqa", ("likelihood_accuracy", "Avg")),
)  # fmt: skip


def gather(folders: Sequence[Path], output: Path) -> Path:
    """Writes OUTPUT/interference.csv and interference.html about run folders of one experiment with different seeds.

    Raises InputError where a folder is no finished run of this experiment, or two have the same seed.
    """
    runs = runs_by_seed(folders)
    table = {arm.name: {measure.name: values_of(runs, arm, measure) for measure in MEASURES} for arm in ARMS}
    same = {arm.name: instruction_tensors_equal(runs, arm) for arm in ARMS}
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "interference.csv", csv_text(table, list(runs)))
    write_atomically(output / "interference.html", page(table, same, runs))
    return output / "interference.html"


def runs_by_seed(folders: Sequence[Path]) -> dict[int, RunFiles]:
    """The runs in order of their seeds."""
    runs: dict[int, RunFiles] = {}
    for folder in folders:
        run = read_run(folder)
        missing = [arm.name for arm in ARMS if arm.name not in run.variants]
        if missing:
            raise InputError(f"{folder} has no variants/{missing[0]}; it is no whole run of experiment=interference.")
        seed = run.config["seed"]
        if seed in runs:
            raise InputError(f"{folder} and {runs[seed].folder} both have seed {seed}. Give one folder a seed.")
        runs[seed] = run
    return dict(sorted(runs.items()))


def values_of(runs: Mapping[int, RunFiles], arm: Arm, measure: Measure) -> Values:
    """A measure of an arm by seed; seeds where it was not taken are left out."""
    found: Values = {}
    for seed, run in runs.items():
        value = metric(run.variants[arm.name], measure)
        if measure.of is not None and value is not None:
            start = next(one for one in MEASURES if one.name == measure.of)
            reference = metric(run.variants[arm.reference], start) if arm.reference else None
            value = None if reference is None else value - reference
        if value is not None:
            found[seed] = value
    return found


def metric(run: RunFiles, measure: Measure) -> float | None:
    """The number in the run's eval/TASK/metrics.json, None where it is not there."""
    evaluation = run.evaluations.get(measure.task)
    value: Any = evaluation.metrics if evaluation is not None else None
    for key in measure.keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def instruction_tensors_equal(runs: Mapping[int, RunFiles], arm: Arm) -> bool | None:
    """Whether every tensor of the arm's reference is the same, to the bit, in the arm; None without a reference."""
    if arm.reference is None:
        return None
    from safetensors.numpy import load_file

    for run in runs.values():
        own, reference = (
            load_file(run.variants[name].folder / "adapter" / "adapter.safetensors")
            for name in (arm.name, arm.reference)
        )
        if any(name not in own or own[name].tobytes() != held.tobytes() for name, held in reference.items()):
            return False
    return True


def mean(values: Values) -> float | None:
    return sum(values.values()) / len(values) if values else None


def csv_text(table: Mapping[str, Mapping[str, Values]], seeds: Sequence[int]) -> str:
    """arm, measure, mean, one column a seed; an empty cell where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "measure", "mean", *(f"seed {seed}" for seed in seeds)])
    for arm, measures in table.items():
        for name, values in measures.items():
            if values:
                cells = [values.get(seed) for seed in seeds]
                writer.writerow(
                    [arm, name, *("" if cell is None else f"{cell:.4f}" for cell in (mean(values), *cells))]
                )
    return text.getvalue()


def page(
    table: Mapping[str, Mapping[str, Values]], same: Mapping[str, bool | None], runs: Mapping[int, RunFiles]
) -> str:
    """The page: a plot a measure, the table of all arms and seeds, the settings."""
    from mmadapter.evaluation.report import render

    plots = [
        dot_plot(
            measure.label,
            [(arm.label, table[arm.name][measure.name], arm.colour) for arm in ARMS if shown(arm, measure)],
        )
        for measure in MEASURES
    ]
    rows = [
        {
            "label": arm.label,
            "cells": [(mean(values), [values.get(seed) for seed in runs]) for values in table[arm.name].values()],
            "same": {None: "–", True: "yes", False: "no"}[same[arm.name]],
        }
        for arm in ARMS
    ]
    return render(
        "interference.html.jinja",
        title="interference",
        folders=[str(run.folder) for run in runs.values()],
        seeds=list(runs),
        measures=[measure.label for measure in MEASURES],
        plots=[plot for plot in plots if plot],
        rows=rows,
        config_text=next(iter(runs.values())).config_text,
    )


def shown(arm: Arm, measure: Measure) -> bool:
    """References have no captions and no change; they are drawn where they have a value of their own."""
    return arm.reference is not None or (measure.of is None and measure.task == "instruct")


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m mmadapter.evaluation.interference", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of experiment=interference, one a seed")
    parser.add_argument("--output", type=Path, required=True, help="folder for interference.html and interference.csv")
    options = parser.parse_args(arguments)
    try:
        print(f"written: {gather(options.runs, options.output)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
