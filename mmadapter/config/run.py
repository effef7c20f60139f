"""The two whole configurations: one run of train.py, one run of eval.py."""

from dataclasses import dataclass, field

from mmadapter.config.cluster import ClusterConf
from mmadapter.config.data import DataConf
from mmadapter.config.engine import EngineConf, LaunchConf
from mmadapter.config.optimizer import OptimizerConf
from mmadapter.config.sweep import SweepConf
from mmadapter.config.task import TaskConf
from mmadapter.config.training import TrainingConf
from mmadapter.config.vision import VisionConf
from mmadapter.hosts.settings import HostConf
from mmadapter.methods import AdapterConf
from mmadapter.settings import choice, input_path, listing, named, number, plain


@dataclass
class ComparisonConf:
    train: bool = True  # false = the host alone, nothing is trained
    images: bool = True  # false = the pictures are left out in training and evaluation
    sources: list[str] | None = None  # keys of data.sources that it trains on; null = all that are left


@dataclass
class RunConf:
    experiment: str = "quickstart"  # file of conf/experiment; names the run folder
    run: str | None = plain(None, influence=False)  # name under runs_root, or a path; null = EXPERIMENT-DIGEST
    runs_root: str = plain("runs", influence=False)  # folder that holds the run folders
    # never = anew; changed = continue what run= names under other settings
    resume: str = choice("auto", "never", "changed", influence=False)  # auto = continue a run of the same settings
    seed: int = number(0, at_least=0)  # of the prompts' start, the order of the samples, sampling
    threads: int | None = number(None, at_least=1, influence=False)  # of torch; null = OMP_NUM_THREADS, else at most 2
    dry_run: bool = plain(False, influence=False)  # build on the meta device, print table and memory estimate, stop
    host: HostConf = field(default_factory=HostConf)
    vision: VisionConf = field(default_factory=VisionConf)
    adapter: AdapterConf = field(default_factory=AdapterConf)
    data: DataConf = field(default_factory=DataConf)
    optimizer: OptimizerConf = field(default_factory=OptimizerConf)
    training: TrainingConf = field(default_factory=TrainingConf)
    engine: EngineConf = field(default_factory=EngineConf)
    launch: LaunchConf = field(default_factory=LaunchConf)
    cluster: ClusterConf = field(default_factory=ClusterConf, metadata={"without_influence": True})
    sweep: SweepConf = field(default_factory=SweepConf)
    tasks: dict[str, TaskConf] = named()  # name -> evaluation, as conf/task describes it
    evaluate: list[str] = listing()  # keys of tasks that run after the training
    comparison: dict[str, ComparisonConf] = named()  # name -> a run beside this one, in RUN/comparison/NAME
    variants: dict[str, list[str]] = named()  # name -> overrides (key=value, ~key); a run of its own, RUN/variants/NAME


@dataclass
class HostOverride:
    path: str | None = input_path()  # null = where the run's host was
    dtype: str | None = choice(None, "auto", "float32", "bfloat16")  # null = as in the run
    attention: str | None = choice(None, "sdpa", "eager", "flex")  # null = as in the run


@dataclass
class VisionOverride:
    pretrained: str | None = input_path()  # null = where the run's CLIP weights were
    cache: str | None = None  # folder for frozen features; null = as in the run
    batch_size: int | None = number(None, at_least=1)  # pictures encoded at a time; null = as in the run
    workers: int | None = number(None, at_least=0)  # processes that read pictures ahead; null = as in the run


@dataclass
class EvalConf:
    task: TaskConf = field(default_factory=TaskConf)
    run: str | None = None  # run folder: a name under runs_root, or a path
    given: list[str] = listing()  # filled by eval.py: the task's keys on the command line; the others are as in the run
    runs_root: str = "runs"  # folder that holds the run folders
    predictions: str | None = input_path()  # a predictions file to score without any model, instead of run
    output: str | None = None  # folder for metrics.json and predictions.jsonl; null = RUN/eval/TASK
    threads: int | None = number(None, at_least=1)  # of torch; null = OMP_NUM_THREADS, else at most 2
    device: str = choice("auto", "cpu", "cuda")  # auto = the GPU where there is one
    host: HostOverride = field(default_factory=HostOverride)
    vision: VisionOverride = field(default_factory=VisionOverride)
