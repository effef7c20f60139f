"""dry_run=true: the trainable table and a memory estimate, from shapes alone (meta device), nothing is trained."""

from __future__ import annotations

from typing import Any

from mmadapter.terminal import Display
from mmadapter.training.assembly import groups_of, host_dtype
from mmadapter.training.memory import MemoryEstimate, estimate, frozen_bytes, host_shape
from mmadapter.training.schedule import actual_lr
from mmadapter.training.table import show_trainable, trainable_rows

BYTES = {"float32": 4, "bfloat16": 2}


def dry_run(conf: Any, display: Display) -> dict[str, Any]:
    """Builds the assistant on the meta device and prints what would train and what memory it would take."""
    from mmadapter.model import AdaptedModel

    assistant = AdaptedModel.build(conf.host, conf.vision, conf.adapter, conf.seed, "meta")
    lr = actual_lr(conf.optimizer.base_lr, conf.optimizer.batch_size)
    rows = trainable_rows(conf, assistant, groups_of(conf, assistant), lr)
    show_trainable(rows, display)
    display.say(
        f"learning rate {lr:.4g} = base {conf.optimizer.base_lr:g} x effective batch "
        f"{conf.optimizer.batch_size} / 256; micro-batches of {conf.optimizer.micro_batch_size}"
    )
    memory = memory_of(conf, assistant)
    display.table(f"memory estimate for training{of_each(conf)}", ["", "bytes"], memory.rows())
    display.say(
        "An upper estimate: real batches are padded to their longest sample only. The image encoder comes on top."
    )
    return {
        "trainable": rows,
        "parameters": sum(row["parameters"] for row in rows),
        "memory": memory.as_dict(),
        "lr": lr,
    }


def memory_of(conf: Any, assistant: Any) -> MemoryEstimate:
    """The estimate for the settings' micro-batch, filled with samples of full length."""
    size = BYTES[host_dtype(conf)]
    trainable = {id(item.parameter) for item in assistant.trainable_parameters()}
    host = assistant.host
    stored = frozen_bytes(host, trainable)
    values = sum(parameter.numel() for parameter in host.parameters() if id(parameter) not in trainable)
    stored = max(stored, values * size) if size == 4 else min(stored, values * size)
    return estimate(
        host_shape(host.config, size),
        stored,
        sum(item.parameter.numel() for item in assistant.trainable_parameters()),
        adapted_layers=host.config.num_hidden_layers - assistant.adapter.lowest_layer(host.config.num_hidden_layers),
        tokens=conf.optimizer.micro_batch_size * assistant.max_tokens,
        longest=assistant.max_tokens,
        checkpointing=conf.host.activation_checkpointing,
        eager_attention=conf.host.attention == "eager",
        kept_by_parts=assistant.adapter.kept_per_token(),
        engine=conf.engine.name,
        processes=conf.launch.processes or 1,
        gathered=conf.engine.gathered_parameters,
    )


def of_each(conf: Any) -> str:
    """Says whose memory it is, where the settings name several processes."""
    processes = conf.launch.processes or 1
    return "" if processes == 1 else f", each of {processes} processes, engine={conf.engine.name}"
