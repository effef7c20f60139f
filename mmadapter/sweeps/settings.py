"""`sweep` and `cluster`: what jobs of `mmadapter train -m` are compared by, how a search goes, where the jobs run.

Nothing here changes the result of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmadapter.settings import choice, listing, nearest, number, plain

# where and how the jobs run, and how long a search goes on: these do not make it another sweep
NOT_THE_SWEEP = (
    *("cluster", "engine", "launch", "hydra", "runs_root", "threads", "dry_run", "resume"),
    *("sweep.trials", "sweep.parallel"),
)

VALIDATION_LOSS = "validation_loss"  # the lowest one of a run, where runs are compared


@dataclass
class SweepConf:
    """How the runs of `mmadapter train -m` are compared and proposed."""

    # TASK.SCORE (scienceqa.Avg, coco_caption.CIDEr), or validation_loss, the lowest one;
    # null = the first score of the first task that has one, else the validation loss
    metric: str | None = plain(None, influence=False)
    # of a better value; null = down for a loss, else up
    direction: str | None = choice(None, "maximize", "minimize", influence=False)
    trials: int | None = number(None, at_least=1, influence=False)  # null = every combination; N = search with Optuna
    parallel: int = number(1, at_least=1, influence=False)  # trials of a search that run at the same time
    seed: int = number(0, at_least=0, influence=False)  # of the search's proposals


@dataclass
class ClusterConf:
    """Where the runs of `mmadapter train -m` are done."""

    name: str = choice("local", "slurm")  # local = here, one after the other; slurm = a SLURM job each
    wait: bool = True  # true = wait until all jobs are done; false = submit, print their numbers and return
    partition: str | None = None  # null = the site's own choice, as for the keys below
    account: str | None = None  # SLURM account that is charged
    qos: str | None = None  # SLURM's quality of service
    nodes: int = number(1, at_least=1)  # machines of one job
    tasks_per_node: int = number(1, at_least=1)  # processes of one job on each machine
    gpus_per_node: int | None = number(None, at_least=1)  # GPUs of one machine
    cpus_per_task: int | None = number(None, at_least=1)  # cores of one process
    mem_gb: int | None = number(None, at_least=1)  # gigabytes of memory on each machine
    timeout_min: int = number(240, at_least=1)  # the time limit of one attempt, in minutes
    signal_delay_s: int = number(120, at_least=1)  # seconds before the limit at which a job is told to save
    array_parallelism: int = number(256, at_least=1)  # jobs that run at the same time
    setup: list[str] = listing()  # shell lines that run before the job
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch


def cluster_problems(cluster: ClusterConf, *, resume: str, engine: str, processes: int | None) -> Iterator[str]:
    """What would fail, or never end, in a SLURM job; `processes` is launch.processes."""
    if cluster.name != "slurm":
        return
    if cluster.signal_delay_s >= cluster.timeout_min * 60:
        yield (
            f"cluster.signal_delay_s={cluster.signal_delay_s}: must be less than the time limit, "
            f"cluster.timeout_min={cluster.timeout_min} ({cluster.timeout_min * 60} seconds)."
        )
    if resume == "never":
        yield (
            "resume=never with cluster=slurm: a job that queues again would begin anew each time. "
            "Leave it away; for a folder of its own: run=NAME."
        )
    ranks = cluster.nodes * cluster.tasks_per_node
    if ranks > 1 and engine == "single":
        yield (
            f"engine=single is one process, but cluster.nodes={cluster.nodes} x cluster.tasks_per_node="
            f"{cluster.tasks_per_node} are {ranks}. Add engine=zero1 (or another engine), or leave these at 1."
        )
    if (processes or 1) > 1:
        yield (
            f"launch.processes={processes} with cluster=slurm: SLURM starts the processes. "
            f"Leave it away and set cluster.tasks_per_node={processes}."
        )


def metric_problems(
    metric: str | None, scores: Mapping[str, Sequence[str]], why_missing: Callable[[str, str], str | None]
) -> Iterator[str]:
    """A metric that no job will have.

    `scores`: task that runs after the training -> its scores. `why_missing(task, score)`: what the task itself says of
    a score that it does not have, if anything.
    """
    if metric is None or metric == VALIDATION_LOSS:
        return
    task, _, score = metric.partition(".")
    if not score or task not in scores:
        allowed = [VALIDATION_LOSS, *(f"{name}.SCORE" for name in scores)]
        yield (
            f"sweep.metric={metric}: allowed are {', '.join(allowed)}, e.g. scienceqa.Avg or coco_caption.CIDEr. "
            "A task counts where `evaluate` names it."
        )
    elif score not in scores[task]:
        names = [f"{task}.{name}" for name in scores[task]]
        near = nearest(metric, names, most=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        why = why_missing(task, score) or f"{task} has no such score. {meant}It has: {', '.join(names)}"
        yield f"sweep.metric={metric}: {why}"


def direction_of(metric: str | None, asked: str | None) -> str:
    """Which way the metric gets better: as asked, else down for a loss and up for a score."""
    return asked or ("minimize" if (metric or VALIDATION_LOSS).endswith("loss") else "maximize")


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """The name of a sweep's folder, EXPERIMENT-DIGEST: the same for the same command, which so finds it again.

    The digest is over what the command line sets, in any order; a search is another sweep than a grid. `experiment` is
    the composed one; several experiments give "sweep-DIGEST".
    """
    words = sorted(str(override) for override in overrides)
    counted = []
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in NOT_THE_SWEEP):
            counted.append(word)
    counted += ["search"] * any(word.startswith("sweep.trials=") for word in words)
    several = any(word.startswith("experiment=") and word != f"experiment={experiment}" for word in words)
    digest = hashlib.sha256("\n".join(counted).encode()).hexdigest()[:8]
    return f"{'sweep' if several else experiment}-{digest}"
