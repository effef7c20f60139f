"""What learning captions costs: the arms of experiment=interference over several seeds, as one page and one table.

python examples/interference/gather.py runs/interference-A runs/interference-B --output DIR
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

from markupsafe import Markup
from safetensors.numpy import load_file

from mmadapter.errors import InputError
from mmadapter.files import read_json, write_atomically
from mmadapter.reports.charts import Scale, figure, row_rule, rule, svg, tick_text
from mmadapter.reports.page import ReportedRun, render
from mmadapter.tasks.section import Row, Table
from mmadapter.terminal import number_text

Values = dict[int, float]
"""Seed -> value."""
WIDTH, ROW, TOP, BOTTOM, LEFT, RIGHT = 480, 22, 8, 24, 190, 466  # of a plot


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
EXACT, OPEN, PICTURE = ("exact_match",), "visual_instruct", "instruct_with_picture"
MEASURES = (
    Measure("cider", "captions: CIDEr", "coco_caption", ("CIDEr",)),
    Measure("bleu4", "captions: BLEU-4", "coco_caption", ("BLEU-4",)),
    Measure("following", "(i) instructions, no picture: exact, %", "instruct", EXACT),
    Measure("following_change", "(i) change against instructions alone", "instruct", EXACT, of="following"),
    Measure("with_picture", "(ii) instructions, irrelevant picture: exact, %", PICTURE, EXACT),
    Measure("with_picture_change", "(ii) change against instructions alone", PICTURE, EXACT, of="following"),
    Measure("open_followed", "(iii) open visual instructions: followed, %", OPEN, ("followed",)),
    Measure("open_named", "(iii) open visual instructions: right word, %", OPEN, ("named",)),
    Measure("scienceqa", "ScienceQA format, likeliest option, %", "scienceqa", ("likelihood_accuracy", "Avg")),
)


def gather(folders: Sequence[Path], output: Path) -> Path:
    """Writes OUTPUT/interference.csv and interference.html about run folders of one experiment with different seeds.

    Raises InputError where a folder is no finished run of this experiment, or two have the same seed.
    """
    runs = runs_by_seed(folders)
    table = {arm.name: {measure.name: values_of(runs, arm, measure) for measure in MEASURES} for arm in ARMS}
    write_atomically(output / "interference.csv", csv_text(table, list(runs)))
    write_atomically(output / "interference.html", page(table, runs))
    return output / "interference.html"


def runs_by_seed(folders: Sequence[Path]) -> dict[int, ReportedRun]:
    """The runs in order of their seeds."""
    runs: dict[int, ReportedRun] = {}
    for folder in folders:
        run = ReportedRun(folder)
        missing = [arm.name for arm in ARMS if arm.name not in run.variants]
        if missing:
            raise InputError(f"{folder} has no variants/{missing[0]}; it is no whole run of experiment=interference.")
        seed = run.config["seed"]
        if seed in runs:
            raise InputError(f"{folder} and {runs[seed].folder} both have seed {seed}. Give one folder a seed.")
        runs[seed] = run
    return dict(sorted(runs.items()))


def values_of(runs: Mapping[int, ReportedRun], arm: Arm, measure: Measure) -> Values:
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


def metric(run: ReportedRun, measure: Measure) -> float | None:
    """The number in the run's eval/TASK/metrics.json, None where it is not there."""
    value: Any = read_json(run.folder / "eval" / measure.task / "metrics.json")
    for key in measure.keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def unchanged(runs: Mapping[int, ReportedRun], arm: Arm) -> str:
    """Whether every tensor of the arm's reference is the same, to the bit, in the arm: yes, no, – without one."""
    if arm.reference is None:
        return "–"
    for run in runs.values():
        own, reference = (
            load_file(run.variants[name].folder / "adapter" / "adapter.safetensors")
            for name in (arm.name, arm.reference)
        )
        if any(name not in own or own[name].tobytes() != held.tobytes() for name, held in reference.items()):
            return "no"
    return "yes"


def mean(values: Values) -> float:
    return sum(values.values()) / len(values)


def csv_text(table: Mapping[str, Mapping[str, Values]], seeds: Sequence[int]) -> str:
    """arm, measure, mean, one column a seed; an empty cell where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "measure", "mean", *(f"seed {seed}" for seed in seeds)])
    for arm, measures in table.items():
        for name, values in measures.items():
            if values:
                cells = [f"{values[seed]:.4f}" if seed in values else "" for seed in seeds]
                writer.writerow([arm, name, f"{mean(values):.4f}", *cells])
    return text.getvalue()


def page(table: Mapping[str, Mapping[str, Values]], runs: Mapping[int, ReportedRun]) -> str:
    """The page: a plot a measure, the table of all arms and seeds, the settings."""
    plots = []
    for measure in MEASURES:
        # references have no captions and no change; they are drawn where they have a value of their own
        of_references = measure.of is None and measure.task == "instruct"
        arms = [arm for arm in ARMS if arm.reference is not None or of_references]
        if any(table[arm.name][measure.name] for arm in arms):
            plots.append(dot_plot(measure.label, [(arm, table[arm.name][measure.name]) for arm in arms]))
    cell = Markup('<b>{:.2f}</b><br><span class="soft">{}</span>')
    rows = []
    for arm in ARMS:
        cells = [
            cell.format(mean(values), " ".join(f"{values[seed]:.2f}" if seed in values else "–" for seed in runs))
            if values
            else "–"
            for values in table[arm.name].values()
        ]
        rows.append(Row([arm.label, *cells, unchanged(runs, arm)]))
    header = ["arm", *(measure.label for measure in MEASURES), "tensors of its reference unchanged"]
    about = (
        "Bold: the mean; below it each seed. A change is the arm's percentage less that of its architecture's adapter "
        "that saw the same instructions, without a picture, and no caption."
    )
    return render(
        "interference.html.jinja",
        Path(__file__).parent,
        title="interference",
        folders=[str(run.folder) for run in runs.values()],
        seeds=list(runs),
        plots=plots,
        numbers=Table(header, rows, notes=[about]),
        config_text=next(iter(runs.values())).config_text,
    )


def dot_plot(title: str, rows: Sequence[tuple[Arm, Values]]) -> Markup:
    """One row an arm: one dot a seed, a stroke at their mean; rows without a value stay empty."""
    values = [value for _, by_seed in rows for value in by_seed.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.04 * ((high - low) or 1.0)
    x = Scale(low - (room if low < 0 else 0), high + room, LEFT, RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = [rule("axis" if tick == 0 else "grid", x(tick), x(tick), TOP, bottom) for tick in x.ticks()]
    parts += [tick_text(x(tick), bottom + 16, number_text(tick)) for tick in x.ticks()]
    dot = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="4"><title>{}, seed {}: {:.2f}</title></circle>')
    for number, (arm, by_seed) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        parts.append(row_rule("grid", LEFT, RIGHT, y, arm.label))
        parts += [dot.format(arm.colour, x(value), y, arm.label, seed, value) for seed, value in by_seed.items()]
        if by_seed:
            parts.append(rule(f"line c{arm.colour}", x(mean(by_seed)), x(mean(by_seed)), y - 7, y + 7))
    return figure(Markup('<span class="what">{}</span>').format(title), svg(WIDTH, bottom + BOTTOM, title, parts))


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python examples/interference/gather.py", description=__doc__)
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
