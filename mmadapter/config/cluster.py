"""conf/cluster: where the jobs of a sweep run. Nothing here changes a result."""

from dataclasses import dataclass, field
from typing import Any

from mmadapter.settings import choice, listing, number


@dataclass
class ClusterConf:
    name: str = choice("local", "slurm")  # local = here, one after the other; slurm = a SLURM job each
    wait: bool = True  # until all jobs are done; false = submit, print the jobs' numbers and return
    partition: str | None = None  # null = the site's own choice, here and below
    account: str | None = None
    qos: str | None = None
    nodes: int = number(1, at_least=1)  # machines of one job
    tasks_per_node: int = number(1, at_least=1)  # processes of one job on each machine
    gpus_per_node: int | None = number(None, at_least=1)
    cpus_per_task: int | None = number(None, at_least=1)
    mem_gb: int | None = number(None, at_least=1)  # of one machine
    timeout_min: int = number(240, at_least=1)  # the time limit of one attempt, in minutes
    signal_delay_s: int = number(120, at_least=1)  # seconds before the limit at which a job is told to save
    max_num_timeout: int = number(10000, at_least=0)  # how often a job that reached its limit may queue again
    array_parallelism: int = number(256, at_least=1)  # jobs that run at the same time
    setup: list[str] = listing()  # shell lines before the start
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch
