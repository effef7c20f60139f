"""What a dry run prints: the data as they were read, and the memory that the training needs, here and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmadapter.data.training import RunData
from mmadapter.hosts.settings import HostConf
from mmadapter.model import AdaptedModel
from mmadapter.terminal import Display
from mmadapter.training.memory import CARDS_GB, Longest, changes_for_card, memory_needed
from mmadapter.training.settings import EngineConf, SizedOptimizerConf

ABOUT_THE_ESTIMATE = (
    "What a training step takes, each sample counted as long as the longest one. Not counted: Python and its libraries "
    "(half a gigabyte and more in the machine's memory), the image encoder, evaluation. So a process's peak is higher."
)


def show_data(data: RunData | None, questions: Mapping[str, int], display: Display) -> None:
    """Samples by source with their lengths in tokens, what is cut, how much the tasks will ask."""
    if data is None:
        return
    columns = ["data", "samples", "with picture", "tokens: least", "median", "95 %", "most"]
    display.table("data", columns, data.table())
    cut = [f"{count:,} {what}" for what, count in data.cut.items() if count]
    display.say(f"cut to fit in host.max_tokens: {'; '.join(cut) or 'nothing'}")
    for name, count in questions.items():
        display.say(f"task {name} asks {count:,}")


def show_memory(
    optimizer: SizedOptimizerConf,
    host: HostConf,
    engine: EngineConf,
    processes: int,
    model: AdaptedModel,
    device: str,
    data: RunData | None,
    display: Display,
) -> dict[str, Any]:
    """The estimate on this device, beside it in bfloat16 on a GPU, and what to change for GPUs of several sizes.

    `model` may be on the meta device. Returns the estimates as "memory" and "memory_on_gpu".
    """
    longest = None if data is None else Longest(*data.longest())
    dtype = host.dtype_on(device)
    needed, on_gpu = (
        memory_needed(optimizer, host, engine, processes, model, one, longest) for one in (dtype, "bfloat16")
    )
    of_each = f", each of {processes} processes, engine={engine.name}" if processes > 1 else ""
    rows = [[*here, there[1]] for here, there in zip(needed.rows(), on_gpu.rows(), strict=True)]
    length = f"{longest.tokens:,} tokens" if longest is not None else f"host.max_tokens={model.max_tokens:,} tokens"
    samples = optimizer.most_samples(model.max_tokens if longest is None else longest.tokens)
    title = f"memory estimate for training{of_each}: micro-batches of {samples} x {length}"
    display.table(title, ["", f"{dtype} on {device} (here)", "bfloat16 on a GPU"], rows)
    display.say(ABOUT_THE_ESTIMATE)
    cards = [[f"{size} GB", changes_for_card(size, optimizer, host, engine, model, longest)] for size in CARDS_GB]
    changes = f"to change{' (with host.dtype=bfloat16)' if host.dtype == 'float32' else ''}: sum"
    display.table("", ["GPU of", changes], cards, text_columns=[changes])
    return {"memory": needed.as_dict(), "memory_on_gpu": on_gpu.as_dict()}
