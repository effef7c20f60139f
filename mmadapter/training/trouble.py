"""What a training says when something goes wrong that the user can mend: non-finite steps, another schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from mmadapter.distributed.ranks import here
from mmadapter.training.engine import StepResult
from mmadapter.training.schedule import Schedule

NAMED_SAMPLES = 8


def skipped_step(step: int, result: StepResult, count: int, limit: int) -> str:
    """One skipped step: what was not finite, which groups stayed as they were."""
    losses = ", ".join(f"{source} {loss:.4g}" for source, loss in result.loss_by_source.items())
    return (
        f"step {step}: loss ({losses}) or gradient norm ({result.grad_norm:.4g}) is not finite; skipped for "
        f"{', '.join(result.skipped_groups)} ({count} skipped so far, at most {limit} are allowed)"
    )


def too_many_skipped(step: int, count: int, limit: int, samples: Sequence[str]) -> str:
    """Why the run stops, what the last skipped step read, and what to try."""
    return (
        f"Training stopped at step {step}: {count} steps had a non-finite loss or gradient, more than "
        f"optimizer.max_nonfinite_steps={limit}. The last one read: {'; '.join(samples[:3]) or 'unnamed samples'}. "
        "Try a lower optimizer.base_lr, optimizer.clip_norm=1 or host.dtype=float32, and look at these samples."
    )


def sample_places(batches: Sequence[Any]) -> list[str]:
    """Where the first samples of all processes' batches come from. Collective: any of them may be the bad one."""
    learnt = [batch for batch in batches if not getattr(batch, "filler", False)]
    places = [sample.where for batch in learnt for sample in getattr(batch, "samples", ())]
    in_turns = zip_longest(*here().gather(places[:NAMED_SAMPLES]))
    return [place for turn in in_turns for place in turn if place is not None][:NAMED_SAMPLES]


def other_schedule(folder: Any, there: dict[str, float], here: Schedule) -> str | None:
    """The message for checkpoints that were made with another schedule; None where it is the same."""
    now = asdict(here)
    differing = [key for key in sorted(there.keys() | now.keys()) if there.get(key) != now.get(key)]
    if not differing:
        return None
    listed = ", ".join(f"{key} was {there.get(key)}, is {now.get(key)}" for key in differing)
    return (
        f"The checkpoints in {folder} belong to another schedule ({listed}): settings or data have changed. "
        "Undo the change, use another run folder (run=NAME), or go on all the same: run=THIS_FOLDER resume=changed"
    )


def other_type(folder: Any, there: str | None, here: str) -> str | None:
    """The message for checkpoints of a host of another type, as `auto` gives on another device; None where it is not
    known or the same."""
    if there in (None, here):
        return None
    return (
        f"The host was {there} when the checkpoints in {folder} were made, and is {here} here (host.dtype=auto is "
        "bfloat16 on a GPU, else float32). Go on on the device where it was begun; or all the same: "
        f"run=THIS_FOLDER resume=changed, with host.dtype={there} to keep the type"
    )


def other_data(folder: Any, there: dict[str, str] | None, here: dict[str, str]) -> str | None:
    """The message for checkpoints that learned from other samples; None where they are the same, or not known."""
    if there is None or there == here:
        return None
    differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return (
        f"The checkpoints in {folder} learned from other data: the samples, their order or their tokens have changed "
        f"in {', '.join(differing)}. Put the files back, use another run folder (run=NAME), or go on all the same: "
        "run=THIS_FOLDER resume=changed"
    )


def the_way_on(conf: Any, folder: Any = "THE_RUN_FOLDER") -> str:
    """What takes a run up again: its command, but that `resume=never` would take a new folder each time."""
    if conf.resume != "never":
        return "Run the same command again"
    return f"Run the same command with run={folder} in place of resume=never"


def continuing(step: int, total: int, changed: Sequence[str]) -> str:
    """Where a run goes on, and the settings that are not those it was begun with."""
    text = f"continuing at step {step} of {total}"
    return "\n  ".join([f"{text} under changed settings (there -> now):", *changed]) if changed else text
