"""The papers' efficiency claims from finished runs: what trained, what is stored, what ranks exchange, memory, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mmadapter.errors import InputError
from mmadapter.runs.state import RunFolder
from mmadapter.terminal import format_table, readable_bytes

COLUMNS = ("run", "parameters", "adapter file", "exchanged a step", "peak memory", "on the GPU", "s a step", "training")


@dataclass(frozen=True)
class Efficiency:
    """A finished run's figures; None where its folder does not tell."""

    run: str
    parameters: int | None  # that trained: those of the adapter file
    file_bytes: int | None  # of adapter/adapter.safetensors
    exchanged_bytes: int | None  # that each rank hands to the collectives of a step; of one process: None
    peak_bytes: float | None  # of the largest process
    gpu_bytes: float | None
    seconds_per_step: float | None
    training_seconds: float | None


def efficiency_of(run: RunFolder) -> Efficiency:
    """What a finished run's files say."""
    trained, peak = run.summary.get("training") or {}, run.summary.get("peak") or {}
    file = run.folder / "adapter" / "adapter.safetensors"
    steps, seconds = trained.get("steps"), trained.get("seconds")
    return Efficiency(
        str(run.folder),
        parameters_in(file) if file.is_file() else None,
        file.stat().st_size if file.is_file() else None,
        trained.get("exchanged_bytes"),
        peak.get("host_bytes"),
        peak.get("gpu_bytes"),
        seconds / steps if steps and seconds is not None else None,
        seconds,
    )


def parameters_in(file: Path) -> int:
    """The numbers that a safetensors file holds, from its header alone. Raises InputError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: this adapter cannot be read ({error}). Train the run again, or leave it out."
        ) from error


def as_text(found: Sequence[Efficiency]) -> str:
    """The table; "-" where nothing is known."""
    if not found:
        return "no finished runs"

    def size(count: float | None) -> str:
        return "-" if count is None else readable_bytes(count)

    def number(value: float | None, digits: str) -> str:
        return "-" if value is None else format(value, digits)

    rows = [
        [
            one.run,
            number(one.parameters, ","),
            number(one.file_bytes, ","),
            number(one.exchanged_bytes, ","),
            size(one.peak_bytes),
            size(one.gpu_bytes),
            number(one.seconds_per_step, ".4f"),
            number(one.training_seconds, ".1f"),
        ]
        for one in found
    ]
    notes = (
        "adapter file, exchanged a step: bytes; exchanged: by each rank, measured at a step of several CPU processes"
    )
    return "\n".join([format_table(COLUMNS, rows), "", notes])
