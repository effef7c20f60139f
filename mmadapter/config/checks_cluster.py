"""Contradictions between a job of a cluster and the run in it."""

from __future__ import annotations

from collections.abc import Iterator

from mmadapter.config.run import RunConf


def cluster_problems(conf: RunConf) -> Iterator[str]:
    """What would fail, or never end, on the cluster: better known before anything is submitted."""
    cluster = conf.cluster
    if cluster.name != "slurm":
        return
    if cluster.signal_delay_s >= cluster.timeout_min * 60:
        yield (
            f"cluster.signal_delay_s={cluster.signal_delay_s}: must be less than the time limit, "
            f"cluster.timeout_min={cluster.timeout_min} ({cluster.timeout_min * 60} seconds)."
        )
    if conf.resume == "never":
        yield (
            "resume=never with cluster=slurm: a job that queues again would begin anew each time. "
            "Leave it away; for a folder of its own: run=NAME."
        )
    processes = cluster.nodes * cluster.tasks_per_node
    if processes > 1 and conf.engine.name == "single":
        yield (
            f"engine=single is one process, but cluster.nodes={cluster.nodes} x cluster.tasks_per_node="
            f"{cluster.tasks_per_node} are {processes}. Add engine=zero1 (or another engine), or leave these at 1."
        )
    if (conf.launch.processes or 1) > 1:
        yield (
            f"launch.processes={conf.launch.processes} with cluster=slurm: SLURM starts the processes. "
            f"Leave it away and set cluster.tasks_per_node={conf.launch.processes}."
        )
