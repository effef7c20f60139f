"""One job of a sweep as the client sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError


@dataclass
class Job:
    number: int
    overrides: list[str]  # what this job differs in
    folder: Path  # its run folder
    finished: bool  # when the sweep was started
    slurm: Any = None  # submitit's job, once it is submitted

    @property
    def waits(self) -> bool:
        """Whether it has still to be submitted."""
        return not self.finished and self.slurm is None

    def line(self, swept: set[str]) -> str:
        """Where it stands, for the terminal; `swept` as the function of this name finds it."""
        state = "finished" if self.finished else f"SLURM job {self.slurm.job_id}"
        own = " ".join(word for word in self.overrides if word in swept)
        return f"job {self.number}: {state}  {own or 'no sweep'}  {self.folder}"


def swept(jobs: list[Job]) -> set[str]:
    """The overrides that not all jobs have."""
    each = [set(job.overrides) for job in jobs]
    return set.union(*each) - set.intersection(*each)


def refuse_shared_folders(jobs: list[Job]) -> None:
    """Raises InputError where two jobs would write into the same run folder."""
    by_folder: dict[Path, Job] = {}
    for job in jobs:
        other = by_folder.setdefault(job.folder, job)
        if other is not job and not job.finished:
            raise InputError(
                f"jobs {other.number} ({' '.join(other.overrides)}) and {job.number} ({' '.join(job.overrides)}) have "
                f"the same run folder, {job.folder}: what they differ in changes no result. Sweep over one of them, or "
                "name the folders by hand, one command each: run=NAME"
            )


def say(line: str) -> None:
    """One line on the terminal, at once."""
    print(line, flush=True)
