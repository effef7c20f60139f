"""What a run of the bench comes to: figures as JSON, a table of the same figures, and a plot."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
PACKAGES = ("torch", "transformers", "peft", "mmadapter")


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of some turns, with the least and the most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread_text(of: Mapping[str, float]) -> str:
    return f"{of['median']:.3g} ({of['min']:.3g}–{of['max']:.3g})"


def machine() -> dict[str, Any]:
    """Where and with what it was measured, and how busy the machine was besides."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions,
        "commit": commit or "not a git checkout",
    }


def machine_text(of: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    return (
        f"{of['processor']}, {of['cores']} cores, {of['memory_gib']} GiB; load {of['load']} at the end, this run "
        f"included; {packages}; commit {of['commit']}"
    )


def table(columns: Columns, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows]
    return "\n".join(lines)


def plot(title: str, rows: Sequence[Row], key: str) -> str:
    """Bars of the medians of `key`, with lines from the least to the most, as SVG."""
    left, width, height = 170, 420, 26
    most = max(row[key]["max"] for row in rows)
    parts = [f'<text x="0" y="16" font-weight="bold">{escape(title)}</text>']
    for number, row in enumerate(rows):
        top, of = 30 + number * height, row[key]
        low, middle, high = (left + width * of[name] / most for name in ("min", "median", "max"))
        parts += [
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(row["contender"])}</text>',
            f'<rect x="{left}" y="{top}" width="{middle - left:.1f}" height="18" fill="#4477aa"/>',
            f'<path d="M{low:.1f} {top + 9}H{high:.1f}" stroke="#222" stroke-width="2"/>',
            f'<text x="{high + 6:.1f}" y="{top + 13}">{of["median"]:.3g}</text>',
        ]
    size = f'width="{left + width + 60}" height="{34 + len(rows) * height}"'
    style = 'font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def tell(result: dict[str, Any], columns: Columns, plotted: str | None, title: str, out: Path | None) -> None:
    """Prints the table and what belongs to it; writes result.json, table.md and plot.svg into `out`."""
    command = shlex.join(["python", "-m", "bench", result["bench"], *sys.argv[1:]])
    result = {"command": command, "machine": machine(), **result}
    lines = [f"`{result['command']}`", "", machine_text(result["machine"]), "", table(columns, result["rows"]), ""]
    lines += [f"- {text}" for text in result.get("notes", [])]
    lines += [f"- not run: {name}: {why}" for name, why in result.get("not_run", {}).items()]
    text = "\n".join(lines).rstrip()
    print(f"\n{text}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "table.md").write_text(text + "\n")
        if plotted is not None and result["rows"]:
            (out / "plot.svg").write_text(plot(title, result["rows"], plotted))
        print(f"\nwritten: {out}/result.json, table.md, plot.svg")
