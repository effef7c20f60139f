"""The end of a run at the terminal: each task's scores side by side, some answers, time, memory, what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmadapter.runs.state import RunFolder
from mmadapter.tasks.section import sections_of, show_section
from mmadapter.terminal import Display, duration, readable_bytes


def show_results(folder: Path, summary: Mapping[str, Any], display: Display) -> None:
    """Prints what a run folder holds: the tasks' scores and answers beside those of the runs in it, time and memory,
    the report, the next commands."""
    for section in sections_of(folder, RunFolder(folder).config, with_papers=False).values():
        show_section(section, display)
    display.say(facts_line(summary))
    report = folder / "report.html"
    if report.is_file():
        display.say(f"report: {report}")
    if commands := next_commands(folder, summary):
        display.say("next:\n  " + "\n  ".join(commands))


def facts_line(summary: Mapping[str, Any]) -> str:
    """Wall time, training time, peak memory."""
    training = summary.get("training") or {}
    attempts, peak = summary.get("attempts", 1), summary.get("peak") or {}
    parts = []
    if "wall_seconds" in summary:
        of = f" in {attempts} attempts" if attempts > 1 else ""
        parts.append(f"wall time {duration(summary['wall_seconds'])}{of}")
    if {"steps", "seconds"} <= training.keys():
        parts.append(f"training {training['steps']} steps in {duration(training['seconds'])}")
    if "host_bytes" in peak:
        parts.append(f"peak memory {readable_bytes(peak['host_bytes'])}")
    if "gpu_bytes" in peak:
        parts.append(f"{readable_bytes(peak['gpu_bytes'])} on the GPU")
    if several := peak.get("processes"):
        parts.append(f"of the largest of {len(several)} processes")
    return ", ".join(parts)


def next_commands(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The next commands to try, made of what the run holds: an adapter, evaluations, the made-up world, a board."""
    made = (RunFolder(folder).config.get("data") or {}).get("made")
    variants = sorted((folder / "variants").glob("*"))
    folder = variants[0] if variants else folder
    commands = [f"mmadapter chat {folder}"] if (folder / "adapter" / "adapter.json").is_file() else []
    results = sorted(file.parent.name for file in folder.glob("eval/*/metrics.json"))
    evaluated = next(iter(summary.get("evaluation") or results), None)
    if evaluated is not None:
        commands.append(f"mmadapter eval task={evaluated} run={folder}")
    if made:
        commands.append("mmadapter train experiment=finetune data.path=FILE_OR_FOLDER   (data of your own)")
    boards = folder / "tensorboard"
    return [*commands, f"tensorboard --logdir {boards}"] if boards.is_dir() else commands
