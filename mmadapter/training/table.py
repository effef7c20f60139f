"""The table of what trains, printed at the start and saved as trainable.json (design decision 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmadapter.methods.groups import Group, trainable_table
from mmadapter.terminal import Display


def trainable_rows(conf: Any, assistant: Any, groups: Sequence[Group], lr: float) -> list[dict[str, Any]]:
    """One row per group and role; shares are of the host's parameters."""
    return trainable_table(groups, assistant.trainable_parameters(), lr, conf.optimizer.weight_decay, assistant.host_size)


def show_trainable(rows: Sequence[dict[str, Any]], display: Display) -> None:
    """Prints the table with its sum."""
    columns = ["group", "role", "tensors", "parameters", "of host", "lr", "decay", "sources"]
    lines = [
        [
            row["group"],
            row["role"],
            f"{row['tensors']:,}",
            f"{row['parameters']:,}",
            f"{row['share']:.3%}",
            f"{row['lr']:.4g}",
            f"{row['weight_decay']:g}",
            str(row["sources"]),
        ]
        for row in rows
    ]
    tensors, parameters = sum(row["tensors"] for row in rows), sum(row["parameters"] for row in rows)
    lines.append(["sum", "", f"{tensors:,}", f"{parameters:,}", f"{sum(row['share'] for row in rows):.3%}", "", "", ""])
    display.table("what trains", columns, lines, text_columns=("role", "sources"))
