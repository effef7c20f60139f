"""What one process of a run stores of weights, gradients and moments under each engine (ZeRO paper, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

from mmadapter.distributed.deepspeed import Zero

VALUE = 4  # bytes of a float32 number: each trainable value, its start, its gradient, each of its two Adam moments


@dataclass(frozen=True)
class Stored:
    """Bytes of one process."""

    frozen: int
    trainable: int  # with start (from which movement is measured), gradients and moments
    gathered: int = 0  # frozen weights of other processes that are here for a while
    offloaded: int = 0  # in the machine's memory instead of the device's


def stored_by(engine: str, processes: int, frozen: int, trainable_parameters: int, gathered_bytes: int) -> Stored:
    """What `engine` stores on each of `processes` for a host of `frozen` bytes.

    `gathered_bytes` of the frozen weights are whole at a time under ZeRO-3, and are counted twice: DeepSpeed gathers
    into a buffer, from which it cuts the weights.

    Trainable values and their start are whole on every process; so are, for a while, the gradients of one micro-batch
    (twice) and the buffer in which DeepSpeed sums them up. Stage 1 shares out the moments, and adds a copy of the part
    of values and gradients that the process itself moves; stage 2 keeps no other gradients; stage 3 shares out the
    frozen weights, too, and has one more copy of its part of the values. docs/performance.md: as measured.
    """
    whole = VALUE * trainable_parameters
    if engine == "single":
        return Stored(frozen, 5 * whole)
    zero, passing = Zero.of(engine), 3 * whole
    if zero.stage == 0:
        return Stored(frozen, 5 * whole + passing)
    moved = (5 if zero.stage == 3 else 4) * whole // processes
    kept = 2 * whole + passing + (whole if zero.stage == 1 else 0)
    shared = frozen // processes if zero.stage == 3 else frozen
    gathered = 2 * min(frozen, gathered_bytes) if zero.stage == 3 else 0
    if not zero.offload:
        return Stored(shared, kept + moved, gathered)
    if zero.stage == 3:
        return Stored(0, kept, gathered, shared + moved)
    return Stored(shared, kept, 0, moved)
