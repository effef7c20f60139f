"""Memory: what a run will need, before anything is loaded; what it has used; what it says when there is no more."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmadapter.data.batches import Batch
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError, is_out_of_memory
from mmadapter.hosts.head_loss import has_plain_head, rows_at_once
from mmadapter.hosts.quantized import quantized_layers
from mmadapter.hosts.settings import HostConf
from mmadapter.model import AdaptedModel
from mmadapter.tasks.settings import TaskSettings
from mmadapter.terminal import readable_bytes
from mmadapter.training.preemption import way_on
from mmadapter.training.settings import EngineConf, SizedOptimizerConf

VALUE = 4  # bytes of a float32 number: each trainable value, its start, its gradient, each of its two Adam moments
BYTES = {"float32": 4, "bfloat16": 2}
NAMED_SWITCHES = 3
CARDS_GB = (8, 16, 24, 80)  # GPUs that a dry run advises on
USABLE = 0.9  # of a GPU's memory: what a run can have
CHANGES = "changes the result; to go on all the same: run=THIS_FOLDER resume=changed"


# --- what a run will need


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process; activations and logits are those of one micro-batch of the longest samples."""

    frozen: int
    trainable: int  # with start (from which movement is measured), gradients and moments
    activations: int
    logits: int
    gathered: int = 0  # ZeRO-3: frozen weights of other processes that are here for a while
    offloaded: int = 0  # in the machine's memory instead of the device's, not in the sum

    @property
    def total(self) -> int:
        return self.frozen + self.gathered + self.trainable + self.activations + self.logits

    def rows(self) -> list[list[str]]:
        """Lines of a table: what, how much."""
        parts = {
            "frozen weights": self.frozen,
            "trainable parameters with start, gradients and Adam moments": self.trainable,
            "activations of a micro-batch of the longest samples": self.activations,
            "logits of its supervised tokens": self.logits,
        }
        if self.gathered:
            parts["frozen weights gathered from other processes"] = self.gathered
        parts["sum"] = self.total
        if self.offloaded:
            parts["besides, in the machine's memory (offloaded)"] = self.offloaded
        return [[name, readable_bytes(size)] for name, size in parts.items()]

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Longest:
    """How long samples get: tokens of the longest one, and how many of them are supervised at most."""

    tokens: int
    supervised: int

    def cut(self, most: int) -> Longest:
        return Longest(min(self.tokens, most), min(self.supervised, most))


def memory_needed(
    optimizer: SizedOptimizerConf,
    host: HostConf,
    engine: EngineConf,
    processes: int,
    model: AdaptedModel,
    dtype: str,
    longest: Longest | None = None,
) -> MemoryEstimate:
    """The estimate for one rank of a training with these settings, for a micro-batch of samples that are all as long as
    the longest; without data (`longest` None) full of supervised tokens.

    `model` may be on the meta device; `dtype` is that of the frozen weights.
    """
    longest = longest or Longest(model.max_tokens, model.max_tokens)
    samples = optimizer.most_samples(longest.tokens)
    size, config = BYTES[dtype], model.host.config
    trainable = {id(item.parameter): item.parameter.numel() for item in model.trainable_parameters()}
    few_bits = {id(t): t for layer in quantized_layers(model.host) for t in layer.buffers()}
    tensors = {id(tensor): tensor for tensor in [*model.host.parameters(), *model.host.buffers()]}
    stored = sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in trainable.keys() | few_bits)
    values = sum(parameter.numel() for parameter in model.host.parameters() if id(parameter) not in trainable)
    stored = max(stored, values * size) if size == 4 else min(stored, values * size)
    stored += sum(t.numel() * t.element_size() for t in few_bits.values())
    return estimate(
        config,
        size,
        stored,
        sum(trainable.values()),
        adapted_layers=config.num_hidden_layers - model.adapter.lowest_layer(config.num_hidden_layers),
        tokens=samples * longest.tokens,
        longest=longest.tokens,
        supervised=samples * longest.supervised,
        logits_at_once=logits_at_once(model, engine, on_gpu=dtype == "bfloat16"),
        checkpointing=host.activation_checkpointing,
        eager_attention=host.attention == "eager",
        kept_by_parts=model.adapter.kept_per_token(),
        engine=engine,
        processes=processes,
    )


def estimate(
    config: Any,
    bytes_per_value: int,
    frozen: int,
    trainable_parameters: int,
    *,
    adapted_layers: int,
    tokens: int,
    longest: int,
    supervised: int | None = None,
    logits_at_once: int | None = None,
    checkpointing: bool = False,
    eager_attention: bool = False,
    kept_by_parts: int = 0,
    engine: EngineConf,
    processes: int = 1,
) -> MemoryEstimate:
    """Upper estimate of a training step on one process: `tokens` in a micro-batch, of which `supervised` have logits
    (None: all), `logits_at_once` at the same time (None: all), `longest` in one sample.

    `config` is the host's, of `transformers`; its frozen weights take `frozen` bytes. docs/performance.md: as measured.
    """
    # Kept for the backward in each adapted layer with fused attention: 6 widths + 2 intermediate widths a token, and
    # `kept_by_parts` numbers in float32, which trained parts inside of the layer need for their gradients (scale,
    # norms, LoRA). With activation checkpointing: one width a token, and one whole layer while it is computed again.
    width = config.hidden_size
    intermediate = getattr(config, "intermediate_size", 4 * width)
    layer = tokens * (6 * width + 2 * intermediate) * bytes_per_value + tokens * kept_by_parts * 4
    if eager_attention:  # scores and weights of every pair of tokens
        layer += tokens * longest * config.num_attention_heads * (bytes_per_value + 4)
    activations = layer * adapted_layers
    if checkpointing:
        activations = layer + adapted_layers * tokens * width * bytes_per_value
    # Logits and their gradient in float32, and in the host's type; chunk by chunk one takes the other's place.
    supervised = tokens if supervised is None else supervised
    logits = supervised * config.vocab_size * (4 + 4 + bytes_per_value)
    if logits_at_once is not None:
        whole_rows = min(supervised, logits_at_once)
        logits = whole_rows * config.vocab_size * (4 + bytes_per_value) + supervised * width * bytes_per_value

    # Trainable values, their start, gradients and moments. With DeepSpeed values and start are whole on every process;
    # so are, for a while, the gradients of one micro-batch (twice) and the buffer in which DeepSpeed sums them up.
    whole, stage = VALUE * trainable_parameters, engine.stage
    passing = 0 if engine.name == "single" else 3 * whole
    if stage == 0:
        return MemoryEstimate(frozen, 5 * whole + passing, activations, logits)

    # Stage 1 shares out the moments, and adds a copy of the part of values and gradients that the process itself moves;
    # stage 2 keeps no other gradients; stage 3 shares out the frozen weights, too, and has one more copy of its part of
    # the values. What is gathered is counted twice: into a buffer, from which DeepSpeed cuts the weights.
    moved = (5 if stage == 3 else 4) * whole // processes
    kept = 2 * whole + passing + (whole if stage == 1 else 0)
    shared = frozen // processes if stage == 3 else frozen
    gathered = 2 * min(frozen, engine.gathered_parameters * bytes_per_value) if stage == 3 else 0
    if not engine.offload:
        return MemoryEstimate(shared, kept + moved, activations, logits, gathered)
    if stage == 3:
        return MemoryEstimate(0, kept, activations, logits, gathered, shared + moved)
    return MemoryEstimate(shared, kept, activations, logits, 0, moved)


def logits_at_once(model: AdaptedModel, engine: EngineConf, on_gpu: bool) -> int | None:
    """How many rows of logits the loss holds at the same time; None: all of a micro-batch."""
    if engine.stage == 3 or not has_plain_head(model.host):
        return None
    return rows_at_once(model.host.config.vocab_size, on_gpu)


def changes_for_card(
    gigabytes: float,
    optimizer: SizedOptimizerConf,
    host: HostConf,
    engine: EngineConf,
    model: AdaptedModel,
    longest: Longest | None = None,
) -> str:
    """What to set so that a training in bfloat16 fits a GPU of so many gigabytes, the least of changes; "nothing" where
    it fits as it is. A tenth of the card is left to the driver and to gaps between blocks.
    """
    micro_batches = [n for n in range(optimizer.micro_batch_size, 0, -1) if optimizer.batch_size % n == 0]
    thin, shorter = "host.activation_checkpointing=true", [256, 128]
    longest = longest or Longest(model.max_tokens, model.max_tokens)

    # Cheapest first: smaller micro-batches, then checkpointing, then shorter samples, then other engines.
    tries: list[tuple[int, bool, int, str, int, list[str]]] = []
    for checkpointing in sorted({host.activation_checkpointing, True}):
        words = [thin] if checkpointing and not host.activation_checkpointing else []
        tries += [(micro, checkpointing, longest.tokens, engine.name, 1, words) for micro in micro_batches]
    words = [] if host.activation_checkpointing else [thin]
    for most in (one for one in shorter if one < longest.tokens):
        tries.append((1, True, most, engine.name, 1, [*words, f"host.max_tokens={most}"]))
    for count in (2, 4, 8):
        if optimizer.batch_size >= count:
            more = [f"engine=zero3 launch.processes={count} (as many GPUs)"]
            tries.append((1, True, longest.tokens, "zero3", count, [*words, *more]))
    tries.append((1, True, longest.tokens, "zero3_offload", 1, [*words, "engine=zero3_offload"]))

    for micro, checkpointing, most, name, count, words in tries:
        needed = memory_needed(
            replace(optimizer, micro_batch_size=micro),
            replace(host, activation_checkpointing=checkpointing),
            replace(engine, name=name),
            count,
            model,
            "bfloat16",
            longest.cut(most),
        )
        if needed.total <= USABLE * gigabytes * 1e9:
            smaller = [f"optimizer.micro_batch_size={micro}"] if micro != optimizer.micro_batch_size else []
            return f"{' '.join([*smaller, *words]) or 'nothing'}: {readable_bytes(needed.total)}"
    return "too small for this host, whatever is set"


# --- what it has used


def reset_peak() -> None:
    """Lets `peak_memory` count from here: a sweep on this machine runs its jobs in one process. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Bytes at the highest point so far: of this process (`host_bytes`, where the system tells it), and of the GPU's
    allocator (`gpu_bytes`)."""
    peak = {}
    with contextlib.suppress(ImportError):  # Windows does not tell it this way
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        peak["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def peak_of_ranks(ranks: Ranks) -> dict[str, Any]:
    """The highest of all ranks' peaks; where there are several, also each one's (`processes`). Collective."""
    of_all = ranks.gather(peak_memory())
    highest: dict[str, Any] = {name: max(peak[name] for peak in of_all) for name in of_all[0]}
    return highest | {"processes": of_all} if len(of_all) > 1 else highest


# --- what is said when it runs out


@contextlib.contextmanager
def explain_memory(doing: str, switches: Callable[[], Sequence[str]], at_the_end: str = "") -> Iterator[None]:
    """Makes an InputError of running out of memory while inside: what was done, the peak, the cheapest `switches`."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        peak = peak_memory()
        places = {"host_bytes": "of memory", "gpu_bytes": "on the GPU"}
        used = ", ".join(f"{readable_bytes(size)} {places[name]}" for name, size in peak.items()) or "not measured here"
        named = "\n  ".join(switches()[:NAMED_SWITCHES])
        raise InputError(
            f"Out of memory {doing}: the peak was {used}. The cheapest switches:\n  {named}{at_the_end}"
        ) from error


@dataclass(frozen=True)
class MemoryAdvice:
    """What a run says when memory runs out: made of those settings that can be switched."""

    optimizer: SizedOptimizerConf
    host: HostConf
    engine: EngineConf
    resume: str
    world_size: int

    @contextlib.contextmanager
    def explained(self, doing: str = "", batches: Sequence[Batch] = (), smaller: Sequence[str] = ()) -> Iterator[None]:
        """Makes an InputError of running out of memory while inside: `doing` this, or on the largest of these batches.

        `smaller`: switches for what was being done, which are named before those of the whole run.
        """
        held = self.optimizer.micro_batch_size
        if batches:
            largest = max(batches, key=lambda batch: batch.input_ids.numel())
            held = len(largest.samples)
            rows, tokens = largest.input_ids.shape
            doing = f"in a micro-batch of {rows} samples x {tokens} tokens"
            if largest.forest is not None:
                doing = f"in a micro-batch of {len(largest.samples)} samples, a forest of {tokens} tokens"
        anew = f"\n{way_on(self.resume)}, and one of these." if self.resume == "never" else ""
        with explain_memory(doing, lambda: [*smaller, *self.switches(held, in_steps=bool(batches))], anew):
            yield

    def switches(self, held: int, *, in_steps: bool) -> list[str]:
        """What still can be switched, cheapest first; what only makes training steps smaller helps `in_steps` alone.

        `held`: how many samples were in memory.
        """
        world_size = self.world_size
        fewer = next((n for n in range(held // 2, 0, -1) if self.optimizer.batch_size % n == 0), 1)
        shorter = max(8, self.host.max_tokens // 2)
        sharded = self.engine.stage == 3
        many_gpus = world_size == 1 and torch.cuda.device_count() > 1
        on_gpu = self.engine.device != "cpu" and torch.cuda.is_available()
        part = "keeps its part of the frozen weights"
        switches = [
            (
                in_steps and held > 1,
                f"optimizer.micro_batch_size={fewer} (the same run goes on, in more, smaller pieces)",
            ),
            (
                in_steps and not self.host.activation_checkpointing,
                "host.activation_checkpointing=true (the same result, about a third slower)",
            ),
            (sharded, f"more than {world_size} processes (each keeps a smaller part of the frozen weights)"),
            (not sharded and world_size > 1, f"engine=zero3 (each of the {world_size} ranks {part})"),
            (not sharded and many_gpus, f"engine=zero3 launch.processes=N, on N GPUs (each {part})"),
            (
                on_gpu and not (sharded and self.engine.offload),
                "engine=zero3_offload (frozen weights and moments wait in the machine's memory; slow)",
            ),
            (
                self.host.dtype == "float32",
                f"host.dtype=bfloat16 (half the frozen weights and activations; {CHANGES})",
            ),
            (in_steps, f"host.max_tokens={shorter} (cuts long samples; {CHANGES})"),
            (True, "a smaller host, or a machine with more memory"),
        ]
        return [text for is_open, text in switches if is_open]


def of_a_task(key: str, task: TaskSettings, changes: str = CHANGES) -> list[str]:
    """The switches of one evaluation, whose settings stand under `key`; `changes`: what fewer beams mean."""
    size, beams = task.batch_size, task.generation.beams
    switches = [f"{key}.batch_size={size // 2} (the same odds, fewer samples at a time)"] if size > 1 else []
    if beams > 1:
        switches.append(f"{key}.generation.beams={beams // 2} ({changes})")
    return switches
