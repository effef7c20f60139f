"""The settings of a run and of an evaluation on one page, made of the components' own settings. Loads no torch.

Below the page: from what Hydra composed to checked objects, what must fit among components, and the settings of the
runs beside a run (comparisons, variants).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmadapter import settings
from mmadapter.data.settings import (
    READERS,
    DataConf,
    ReaderSettings,
    narrowed_group,
    samples_per_step,
    sharing_problems,
)
from mmadapter.distributed.settings import LaunchConf
from mmadapter.errors import InputError, printable
from mmadapter.files import write_atomically
from mmadapter.hosts.settings import HostConf
from mmadapter.methods import AdapterConf, version_0_1
from mmadapter.settings import (
    choice,
    chosen,
    entries,
    explained,
    input_path,
    known_keys,
    listing,
    named,
    number,
    plain,
    problems_of,
    to_plain,
    unknown_keys,
    unknown_message,
    values_outside,
    with_overrides,
)
from mmadapter.sweeps.settings import ClusterConf, SweepConf, cluster_problems, metric_problems
from mmadapter.tasks import TASKS, task_of
from mmadapter.tasks.settings import ScienceqaTaskSettings, TaskSettings
from mmadapter.training.settings import ENGINES, EngineConf, OptimizerConf, TrainingConf
from mmadapter.vision import ENCODERS
from mmadapter.vision.settings import OpenClipSettings, VisionSettings

PACKAGE = Path(__file__).resolve().parent
# The repository that this package is run from; None where a wheel has been installed, which carries conf/ inside.
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = (CHECKOUT or PACKAGE) / "conf"  # what Hydra composes from
CONFIG_FILE = "config.yaml"
VARIANT = "variant:"  # adapter.start=variant:NAME, another variant of the same run
PLAIN_NAME = re.compile(r"(?!\.)[\w.+=,-]+")
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' subsystem for Linux
# Key of version 0.1 -> today's.
RENAMED = {
    f"adapter.{old}": " and ".join(f"adapter.{new}" for new in places) for old, places in version_0_1.RENAMED.items()
}
GONE = {  # key of version 0.1 -> why there is none any more
    "vision.batch_size": "each picture is encoded alone",
    "cluster.max_num_timeout": "a job may reach its time limit as often as it needs",
}


@dataclass
class ComparisonConf:
    """A run beside the main one that shows what a part of it is worth: without pictures, or the host alone."""

    train: bool = True  # false = the host alone, nothing is trained
    images: bool = True  # false = the pictures are left out in training and evaluation
    sources: list[str] | None = None  # keys of data.sources that it trains on; null = all that are left


@dataclass
class RunConf:
    """What a run is called, where it writes, and what it does besides its components."""

    experiment: str = "quickstart"  # file of conf/experiment; names the run folder
    # what to name for the real thing, where the shipped models and world stand in for host and data; null = they do not
    embedded: str | None = plain(None, influence=False)
    run: str | None = plain(None, influence=False)  # name under runs_root, or a path; null = EXPERIMENT-DIGEST
    runs_root: str = plain("runs", influence=False)  # folder that holds the run folders
    # never = anew; changed = continue what run= names under other settings
    resume: str = choice("auto", "never", "changed", influence=False)  # auto = continue a run of the same settings
    seed: int = number(0, at_least=0)  # of the parameters at the start, the order of the samples, sampling
    # CPU threads; null = OMP_NUM_THREADS, or 2
    threads: int | None = number(None, at_least=1, at_most=4096, influence=False)
    dry_run: bool = plain(False, influence=False)  # show data, steps, what trains and a memory estimate, then stop
    host: HostConf = field(default_factory=HostConf)
    vision: VisionSettings = chosen(ENCODERS, "encoder", OpenClipSettings)
    adapter: AdapterConf = field(default_factory=AdapterConf)
    data: DataConf = field(default_factory=DataConf)
    optimizer: OptimizerConf = field(default_factory=OptimizerConf)
    training: TrainingConf = field(default_factory=TrainingConf)
    engine: EngineConf = chosen(ENGINES, "name", EngineConf)
    launch: LaunchConf = field(default_factory=LaunchConf)
    cluster: ClusterConf = field(default_factory=ClusterConf, metadata={"without_influence": True})
    sweep: SweepConf = field(default_factory=SweepConf)
    tasks: dict[str, TaskSettings] = entries(TASKS, chosen_by="name")  # name -> evaluation, as conf/task describes it
    evaluate: list[str] = listing()  # keys of tasks that run after the training
    comparison: dict[str, ComparisonConf] = named()  # name -> a run beside this one, in RUN/comparison/NAME
    # an earlier variant's name in the list stands for that one's overrides
    variants: dict[str, list[str]] = named()  # name -> overrides (key=value, ~key) of one more run, RUN/variants/NAME

    @property
    def group_sources(self) -> dict[str, list[str] | None]:
        """Group -> the sources that move it; None: all."""
        return {name: group.sources for name, group in self.adapter.groups.items()}


@dataclass
class HostOverride:
    """What may differ from the host of the run."""

    path: str | None = input_path()  # folder of the host; null = where the run's host was
    dtype: str | None = choice(None, "auto", "float32", "bfloat16")  # of the frozen weights; null = as in the run
    attention: str | None = choice(None, "sdpa", "eager", "flex")  # attention kernel; null = as in the run


@dataclass
class VisionOverride:
    """What may differ from the image encoder of the run."""

    pretrained: str | None = input_path()  # weights; null = where those of the run were
    cache: str | None = None  # folder for frozen features; false = not kept; null = as in the run
    workers: int | None = number(None, at_least=0)  # processes that read pictures ahead; null = as in the run


@dataclass
class EvalConf:
    """What is evaluated, and where the results go."""

    task: TaskSettings = chosen(TASKS, "name", ScienceqaTaskSettings)
    run: str | None = None  # run folder: a name under runs_root, or a path; null = the newest run that does the task
    given: list[str] = listing()  # the command sets it: keys of the task that were given; the others are as in the run
    runs_root: str = "runs"  # folder that holds the run folders
    predictions: str | None = input_path()  # a file of predictions that is scored without a model, in place of run
    output: str | None = None  # folder for metrics.json and predictions.jsonl; null = RUN/eval/TASK
    threads: int | None = number(None, at_least=1, at_most=4096)  # CPU threads; null = OMP_NUM_THREADS, or 2
    device: str = choice("auto", "cpu", "cuda")  # auto = the GPU where there is one
    launch: LaunchConf = field(default_factory=LaunchConf)  # several processes share the questions out
    host: HostOverride = field(default_factory=HostOverride)
    vision: VisionOverride = field(default_factory=VisionOverride)

    def contradictions(self, key: str) -> Iterator[str]:
        yield from self.task.prediction_problems("task", self.predictions is not None)
        if self.predictions is not None and self.run is not None:
            yield "run= (a model to ask) or predictions= (answers to score): both are given. Give one of them."
        if self.predictions is not None and self.launch.processes is not None:
            yield (
                f"launch.processes={self.launch.processes}: predictions= is scored by one process. Leave "
                "launch.processes away."
            )
        if self.predictions is not None and not Path(self.predictions).expanduser().is_file():
            yield f"predictions={self.predictions}: no such file."


Conf = TypeVar("Conf", RunConf, EvalConf)

# From what Hydra composed, or a run folder holds, to typed settings, and back.


def typed(composed: DictConfig, schema: type[Conf]) -> Conf:
    """The composed settings as an object of `schema`, with interpolations resolved.

    Raises InputError for keys that are not in the schema, and for an interpolation that leads nowhere.
    """
    content: Any = OmegaConf.to_container(composed, resolve=False)
    content.pop("hydra", None)
    if unknown := list(unknown_keys(content, schema)):  # before interpolations, which an unknown key may break
        known = list(known_keys(schema, content))
        raise InputError("\n".join(renamed_message(key) or unknown_message(key, known) for key in unknown))
    try:
        content = OmegaConf.to_container(_without_idle_tasks(OmegaConf.create(content)), resolve=True)
    except OmegaConfBaseException as error:
        said = f"the settings: {explained(error, schema, content)}"
        if str(error.full_key or "").startswith("tasks."):
            said += _for_these_data(content.get("experiment"), _readers(content).values())
        raise InputError(said) from error
    try:
        return settings.typed(schema, content)
    except InputError as error:
        if "reader is not set" not in str(error):
            raise
        hint = _for_these_data(content.get("experiment"), _readers(content).values())  # the experiment names a source
        raise InputError(f"{error}{hint}") from error


def _readers(content: Mapping[str, Any]) -> dict[str, str | None]:
    """Source -> its reader, of composed settings; of those that are mappings."""
    sources = (content.get("data") or {}).get("sources") or {}
    return {name: one.get("reader") for name, one in sources.items() if isinstance(one, Mapping)}


def _for_these_data(experiment: str | None, readers: Iterable[str | None]) -> str:
    """What to choose where an experiment is made for other data than those of these readers."""
    made_for = [READERS.settings(one).EXPERIMENT for one in readers if one is not None and one in READERS]
    fitting = next((name for name in made_for if name is not None), None)
    named = f"experiment={fitting}, or " if fitting not in (None, experiment) else ""
    return (
        f"\n  experiment={experiment} is made for other data. For these: {named}experiment=none, which evaluates "
        "nothing; for a file of your own in any layout: experiment=finetune data.path=FILE_OR_FOLDER"
    )


def _without_idle_tasks(content: DictConfig) -> DictConfig:
    """The settings without tasks that `evaluate` does not name and whose places these data do not have.

    An experiment's task follows its own source (${data.sources.alpaca.path}); with other data it is out of place.
    """
    for name in list(content.get("tasks") or ()):
        if name not in (content.get("evaluate") or ()):
            try:
                OmegaConf.to_container(content.tasks[name], resolve=True)
            except OmegaConfBaseException:
                del content.tasks[name]
    return content


def renamed_message(key: str) -> str | None:
    """What to say of a key of version 0.1; None for any other."""
    if key in GONE:
        return f"There is no setting {key!r} any more: {GONE[key]}. Leave it away."
    return f"The setting {key!r} is now {RENAMED[key]} (CHANGELOG.md lists all new names)." if key in RENAMED else None


def save_config(conf: RunConf | EvalConf, folder: Path) -> Path:
    """Write the resolved settings to FOLDER/config.yaml, under that name only when complete."""
    target = folder / CONFIG_FILE
    write_atomically(target, yaml.safe_dump(to_plain(conf), sort_keys=False, allow_unicode=True, width=120))
    return target


def load_run_config(folder: Path) -> RunConf:
    """The settings of a run folder; raises InputError where there are none, or where they cannot be read."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG_FILE}. Name a folder that a training wrote.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings. Remove the folder, or name another one with run=.")
    adapter = content.get("adapter")
    if isinstance(adapter, dict) and version_0_1.is_old(adapter):
        pictures = (content.get("vision") or {}).get("enabled", True)
        content["adapter"] = version_0_1.settings(adapter, pictures)
        _drop(content, list(unknown_keys(content, RunConf)))  # a run of version 0.1 can be evaluated, not continued
    try:
        return settings.typed(RunConf, content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _drop(content: dict[str, Any], keys: list[str]) -> None:
    """Take dotted keys out of nested mappings."""
    for key in keys:
        *path, last = key.split(".")
        holder = content
        for part in path:
            holder = holder[part]
        del holder[last]


def embedded_notice(experiment: str, embedded: str | None) -> str | None:
    """What the terminal and the report say of a run on the shipped models and world; None for any other."""
    if embedded is None:
        return None
    return (
        f"experiment={experiment} was given neither a host nor data: this run is on the tiny models and the embedded "
        f"world that come with the package. The real thing: mmadapter train experiment={experiment} {embedded}"
    )


# What must fit among components; each component's own rules are in its settings class (`contradictions`).


def validate(conf: RunConf | EvalConf) -> None:
    """Raises InputError that lists every contradiction: the key, what it got, what is allowed, how to fix it."""
    found = list(problems_of(conf))
    if isinstance(conf, RunConf) and not any(values_outside(conf)):  # what fits is judged among values that are allowed
        found += run_problems(conf)
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        raise InputError(found[0])
    if found:
        raise InputError(f"{len(found)} settings cannot be used:\n" + "\n".join(f"- {problem}" for problem in found))


def run_problems(conf: RunConf) -> Iterator[str]:
    """What does not fit together among the components of one run, its comparison runs and its variants."""
    own = list(_own_problems(conf))
    yield from own
    own += problems_of(conf)
    yield from cluster_problems(
        conf.cluster, resume=conf.resume, engine=conf.engine.name, processes=conf.launch.processes
    )
    tasks = {name: task_of(conf.tasks[name]) for name in conf.evaluate if name in conf.tasks}
    scores = {name: task.scores() for name, task in tasks.items()}
    yield from metric_problems(
        conf.sweep.metric, scores, lambda name, score: tasks[name].why_no_score(score, f"tasks.{name}")
    )
    for name, compared in conf.comparison.items():
        unknown = [source for source in compared.sources or [] if source not in conf.data.sources]
        if unknown:
            told = _no_such(f"comparison.{name}.sources", unknown, list(conf.data.sources), "data.sources")
            yield told + _for_these_data(conf.experiment, [one.reader for one in conf.data.sources.values()])
        elif compared.train:
            alone = comparison_conf(conf, name)
            yield from _within(f"comparison.{name}", [*problems_of(alone), *_own_problems(alone)], own)
    for name in conf.variants:
        try:
            variant = variant_conf(conf, name)
        except InputError as error:
            yield str(error)
            continue
        yield from _within(f"variants.{name}", [*problems_of(variant), *_own_problems(variant)], own)


def _within(where: str, problems: Iterable[str], known: Container[str]) -> Iterator[str]:
    """The problems of a run within the run, without those that are `known` of the whole."""
    for problem in problems:
        if problem not in known:
            yield f"{where}: {problem}"


def _own_problems(conf: RunConf) -> Iterator[str]:
    """What does not fit together among the components of one run."""
    sources, batch, groups = conf.data.sources, conf.optimizer.batch_size, conf.group_sources

    # Micro-batches divide a step of one source.
    micro_batch = conf.optimizer.micro_batch_size
    if batch and micro_batch and batch % micro_batch and samples_per_step(sources, batch, groups) is None:
        fitting = next(n for n in range(micro_batch, 0, -1) if batch % n == 0)
        yield (
            f"optimizer.micro_batch_size={micro_batch} does not divide optimizer.batch_size={batch}. "
            f"Set optimizer.micro_batch_size={fitting}"
        )
    yield from _vision_problems(conf)

    # Only a variant starts from a variant; whether a folder is there is seen when the run opens it.
    start = conf.adapter.start
    if start is not None and start.startswith(VARIANT) and not conf.dry_run:
        yield f"adapter.start={start} names a variant, which only another variant can start from. Name a folder."

    # Names lead to something.
    for name, group in conf.adapter.groups.items():
        if unknown := [source for source in group.sources or [] if source not in sources]:
            yield _no_such(f"adapter.groups.{name}.sources", unknown, list(sources), "data.sources")
    if batch is not None:
        yield from sharing_problems(sources, batch, groups)
    elif len(sources) > 1 and (narrowed := narrowed_group(sources, groups) or _first_counted(sources)):
        yield (
            f"optimizer.batch_size is null (by the data's size), but {narrowed} asks for samples of every source in "
            "each step. Set optimizer.batch_size, e.g. optimizer.batch_size=64"
        )
    yield from _picture_problems(conf)
    if unknown := [name for name in conf.evaluate if name not in conf.tasks]:
        yield _no_such("evaluate", unknown, list(conf.tasks), "tasks")
    yield from _machine_problems(conf)
    for kind, names in (("comparison", conf.comparison), ("variants", conf.variants)):
        for name in names:
            if not PLAIN_NAME.fullmatch(name):
                yield f"{kind}.{name!r}: it names a folder in {kind}/, so letters, digits, _, - and . are allowed."
    for key, place in (("run", conf.run), ("runs_root", conf.runs_root)):
        if place is not None and (printable(place) != place or "\n" in place or Path(place.strip()).name in ("", "..")):
            yield f"{key}={place!r}: name a folder, without control characters."
    if "/" in conf.experiment or not conf.experiment:
        yield f"experiment={conf.experiment!r}: it names the run folder, so it must be a name without a slash."


def _first_counted(sources: Mapping[str, ReaderSettings]) -> str | None:
    """The key of the first source that says how many of its samples a step holds."""
    counted = (name for name, source in sources.items() if source.samples_per_step is not None)
    return next((f"data.sources.{name}.samples_per_step" for name in counted), None)


def _vision_problems(conf: RunConf) -> Iterator[str]:
    """The encoder has its weights, and what it gives is read by the adapter."""
    visual = conf.adapter.visual
    if conf.vision.enabled is None:  # the data decide; then this is asked again
        return
    if not conf.vision.enabled:
        if visual:
            off = " ".join(f"adapter.{name}=null" for name in visual)
            yield (
                f"adapter.{visual[0]} is for pictures, but vision.enabled is false. Use adapter=v1 for text only (or "
                f"{off}), or vision=clip_vit_l14 for pictures"
            )
        return
    if not conf.dry_run:
        yield from conf.vision.missing_weights("vision")
    if not visual:
        yield (
            "vision.enabled is true, but no method of the adapter reads pictures. Set vision=none for text only, "
            "or add a projection: adapter=v1_visual"
        )
        return
    if conf.vision.SHAPE_NEEDS_TORCH:  # AdaptedModel.build asks the same, on the meta device
        return
    try:
        shape = conf.vision.feature_shape()
    except InputError:  # the encoder's own settings say it
        return
    for name, method in conf.adapter.chosen.items():
        yield from method.feature_problems(f"adapter.{name}", shape)


def _picture_problems(conf: RunConf) -> Iterator[str]:
    """Pictures are read if and only if there is an encoder for them."""
    if conf.vision.enabled is None:
        return
    readings: dict[str, ReaderSettings] = {f"data.sources.{name}": source for name, source in conf.data.sources.items()}
    readings |= {f"data.validation.{name}": held_out for name, held_out in conf.data.validation.items()}
    tasks = {f"tasks.{name}": conf.tasks[name] for name in conf.evaluate if name in conf.tasks}
    readings |= tasks
    with_pictures = [key for key, reading in readings.items() if reading.uses_pictures]
    attached = [key for key, task in tasks.items() if task.attach_images is not None]
    if attached and not conf.vision.enabled:
        yield f"{attached[0]}.attach_images is set, but vision.enabled is false. Leave the task out of evaluate."
    if attached and not tasks[attached[0]].images:
        yield f"{attached[0]}.attach_images is set, but {attached[0]}.images is false. Set {attached[0]}.images=true"
    if with_pictures and not conf.vision.enabled:
        keys = ", ".join(f"{key}.images" for key in with_pictures)
        yield (
            f"vision.enabled is false, but pictures are asked for by {keys}. "
            "Set these to false for text only, or choose an encoder: vision=clip_vit_l14"
        )
    reading = [conf.adapter.methods[name] for name in conf.adapter.readers_of_features]
    learns = conf.vision.enabled and not any(role in conf.adapter.frozen for one in reading for role in one.roles())
    if learns and conf.data.sources and not any(key.startswith("data.sources.") for key in with_pictures):
        yield (
            "vision.enabled is true, but no source in data.sources has pictures: the visual projection would never "
            "learn. Set vision=none adapter=v1, or images=true on a source."
        )


def _machine_problems(conf: RunConf) -> Iterator[str]:
    if conf.engine.name == "single" and (conf.launch.processes or 1) > 1 and not conf.dry_run:
        yield (
            f"launch.processes={conf.launch.processes} with engine=single, which is one process. Set engine=zero1 (the "
            "same result; or another zeroN), or launch.processes=1"
        )
    on_cluster = conf.cluster.name != "local"
    processes = conf.cluster.nodes * conf.cluster.tasks_per_node if on_cluster else conf.launch.processes or 1
    if conf.optimizer.batch_size is not None and conf.optimizer.batch_size < processes:
        yield (
            f"optimizer.batch_size={conf.optimizer.batch_size} is shared out over {processes} processes: some would "
            f"have nothing to do in every step. Set optimizer.batch_size={processes} or more, or start fewer processes"
        )
    is_here = not on_cluster and not conf.dry_run
    if conf.engine.name != "single" and is_here and importlib.util.find_spec("deepspeed") is None:
        yield (
            f"engine={conf.engine.name} needs DeepSpeed, which is not installed. To fix: pip install "
            "'deepspeed>=0.19,<0.20', or engine=single (one process)"
        )
    here_is_none = not on_cluster and not gpu_seems_present()  # jobs are submitted from machines without GPUs
    on_cpu = conf.engine.device == "cpu" or (conf.engine.device == "auto" and here_is_none)
    if conf.host.quantization is not None and conf.engine.stage == 3:
        yield (
            f"host.quantization={conf.host.quantization} with engine={conf.engine.name}: ZeRO-3 shares the host's "
            "weights out in host.dtype. Set engine=zero2 (each process holds the quantised host), or "
            "host.quantization=null"
        )
    if conf.host.attention == "flex" and on_cpu:
        yield "host.attention=flex needs a GPU: FlexAttention has no backward on CPU. Set host.attention=sdpa"


def gpu_seems_present() -> bool:
    """Whether this machine has a GPU driver, asked without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in GPU_DEVICES)


def _no_such(key: str, unknown: list[str], known: list[str], where: str) -> str:
    has = ", ".join(known) or "nothing"
    return f"{key} names {', '.join(unknown)}, which {where} does not have. It has: {has}."


# The settings of the runs beside a run.


def comparison_conf(conf: RunConf, name: str) -> RunConf:
    """The settings of the comparison run `name`: fewer sources, and without pictures where it says so."""
    compared = conf.comparison[name]
    derived = _alone(conf)
    batch, shares = conf.optimizer.batch_size, None
    if batch is not None and not any(sharing_problems(conf.data.sources, batch, conf.group_sources)):
        shares = samples_per_step(conf.data.sources, batch, conf.group_sources)
    if compared.sources is not None:
        derived.data.sources = {key: derived.data.sources[key] for key in compared.sources}
    if derived.optimizer.lr is None and derived.optimizer.base_lr is None:  # the same rate with fewer methods
        derived.optimizer.lr = conf.adapter.lr
    if not compared.images:
        remove_pictures(derived)
    for group in derived.adapter.groups.values():
        if group.sources is not None:
            group.sources = [source for source in group.sources if source in derived.data.sources]
    if shares is not None and derived.data.sources:
        _keep_shares(derived, shares)
    return derived


def variant_conf(conf: RunConf, name: str, folder: Path | None = None) -> RunConf:
    """The settings of the variant `name`: this run's, with the variant's overrides.

    `key=value` sets, `~key` takes an entry of a named list away (`~data.sources.captions`), and the name of a variant
    before this one stands for all that that one says. An `adapter.start` of `variant:OTHER` becomes the folder of that
    variant below the run's `folder`, and null where no folder is given (the settings are only to be checked). Raises
    InputError for what cannot be applied, and for a start at a variant that does not come before this one.
    """
    where, overrides = f"variants.{name}", _overrides_of(conf, name)
    removed = [override[1:] for override in overrides if override.startswith("~")]
    set_ = [override for override in overrides if not override.startswith("~")]
    derived = with_overrides(_alone(conf), set_, where)
    for key in removed:
        _remove_entry(derived, key, where)
    start = derived.adapter.start
    if start is not None and start.startswith(VARIANT):
        other = _variant_before(conf, start.removeprefix(VARIANT), name, f"adapter.start={start}")
        derived.adapter.start = None if folder is None else str(folder / "variants" / other)
    return derived


def _overrides_of(conf: RunConf, name: str) -> list[str]:
    """The variant's overrides, with those of the variants that it names."""
    found = []
    for override in conf.variants[name]:
        is_one = "=" in override or override.startswith("~")
        found += [override] if is_one else _overrides_of(conf, _variant_before(conf, override, name, override))
    return found


def _variant_before(conf: RunConf, wanted: str, name: str, text: str) -> str:
    """`wanted`, if it is a variant before `name`; else InputError about `text`."""
    earlier = list(conf.variants)[: list(conf.variants).index(name)]
    if wanted not in earlier:
        before = ", ".join(earlier) or "none"
        raise InputError(f"variants.{name}: {text} is no variant before this one. Before it: {before}.")
    return wanted


def _remove_entry(conf: RunConf, key: str, where: str) -> None:
    """Takes `data.sources.captions` or another entry with a name of its own out of the settings."""
    *path, last = key.split(".")
    holder: Any = conf
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else getattr(holder, part, None)
    if not isinstance(holder, dict) or last not in holder:
        has = (
            f"{'.'.join(path)} has: {', '.join(holder) or 'nothing'}" if isinstance(holder, dict) else "it has no name"
        )
        raise InputError(
            f"{where}: ~{key} cannot be taken away; {has}. Entries with names are those of data.sources, "
            "data.validation, adapter.groups and tasks."
        )
    del holder[last]


def _keep_shares(conf: RunConf, shares: Mapping[str, int]) -> None:
    """The sources that are left keep their samples per step, and the groups their actual learning rate."""
    for name, source in conf.data.sources.items():
        source.samples_per_step = shares[name]
    left = sum(shares[name] for name in conf.data.sources)
    if conf.optimizer.base_lr is not None:
        conf.optimizer.base_lr *= (conf.optimizer.batch_size or left) / left
    conf.optimizer.batch_size = left


def _alone(conf: RunConf) -> RunConf:
    derived = deepcopy(conf)
    derived.comparison, derived.variants = {}, {}
    return derived


def remove_pictures(conf: RunConf) -> None:
    """Text only: no encoder, no visual method, no source or task that is nothing without its picture."""
    conf.vision.enabled = False
    conf.data.sources = _without_pictures(conf.data.sources)
    conf.data.validation = _without_pictures(conf.data.validation)
    conf.tasks = _without_pictures(conf.tasks)
    conf.evaluate = [name for name in conf.evaluate if name in conf.tasks]
    conf.adapter.without_pictures()


def _without_pictures(readings: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: reading
        for name, reading in readings.items()
        if not (reading.reader in READERS and READERS.settings(reading.reader).needs_pictures)
        and getattr(reading, "attach_images", None) is None
    }
    for reading in kept.values():
        reading.images = False
    return kept
