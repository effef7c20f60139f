"""How a sample that is too long is shortened: whole turns of a dialog first, then the prompt's cuttable ends."""

from __future__ import annotations

from mmadapter.data.samples import ANSWER, CONTEXT, INSTRUCTION

Pieces = list[tuple[str, list[int]]]
"""A sample's segments as (kind, token ids); an answer's ids with end-of-text."""
CUT_ORDER = (CONTEXT, INSTRUCTION)


def size(pieces: Pieces) -> int:
    """How many tokens the pieces have."""
    return sum(len(ids) for _, ids in pieces)


def without_last_turns(pieces: Pieces, excess: int) -> tuple[Pieces, int]:
    """Leaves turns out from the end until `excess` tokens are gone or one turn is left; also says how many turns."""
    ends = _turn_ends(pieces)
    kept = len(ends)
    while excess > 0 and kept > 1:
        excess -= size(pieces[ends[kept - 2] : ends[kept - 1]])
        kept -= 1
    return pieces[: ends[kept - 1]], len(ends) - kept


def without_first_turns(pieces: Pieces, excess: int) -> tuple[Pieces, int]:
    """Leaves answered turns out from the start until `excess` tokens are gone or none is left; also says how many.

    Every turn of a dialog opens with one template piece. The first one carries the head (system line, Alpaca's preface)
    as well, so the oldest turn that stays gets it in place of its own.
    """
    ends = _turn_ends(pieces)
    shorter, left_out = pieces, 0
    while left_out < len(ends) and size(pieces) - size(shorter) < excess:
        shorter = [pieces[0], *pieces[ends[left_out] + 1 :]]
        left_out += 1
    return shorter, left_out


def with_shorter_prompt(pieces: Pieces, excess: int) -> Pieces:
    """Takes up to `excess` tokens off the context's end, then off the instruction's."""
    pieces = list(pieces)
    for cuttable in CUT_ORDER:
        for place in reversed(range(len(pieces))):
            kind, ids = pieces[place]
            if kind == cuttable:
                taken = min(excess, len(ids))
                pieces[place] = (kind, ids[: len(ids) - taken])
                excess -= taken
    return pieces


def _turn_ends(pieces: Pieces) -> list[int]:
    """The place behind each answer."""
    return [place + 1 for place, (kind, _) in enumerate(pieces) if kind == ANSWER]
