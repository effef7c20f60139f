"""What becomes of samples whose picture file is absent: an error, left out, or no picture; never a black one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
MISSING_IMAGE = ("error", "skip", "no_image", "blank")  # "blank", the older word, means "no_image"
NAMED = 5


def check_missing_image(policy: str) -> None:
    """Raises InputError where `policy` is none of error, skip, no_image (or blank)."""
    if policy not in MISSING_IMAGE:
        raise InputError(f"missing_image is {policy!r}; allowed: {', '.join(MISSING_IMAGE)}.")


def settle_missing_images(samples: Sequence[Sample], policy: str, what: str) -> list[Sample]:
    """Applies `policy` to samples whose picture is not on the disk; "no_image" keeps them without one."""
    check_missing_image(policy)
    absent = {place for place, sample in enumerate(samples) if sample.image is not None and not sample.image.is_file()}
    if not absent:
        return list(samples)
    first = ", ".join(str(samples[place].image) for place in sorted(absent)[:NAMED])
    named = sum(sample.image is not None for sample in samples)
    count = f"{what}: {len(absent)} of {named} pictures are missing, the first: {first}"
    if policy == "error":
        raise InputError(
            f"{count}. Fetch them, or set missing_image=skip (leave these items out), "
            "missing_image=no_image (keep them without a picture) or images=false (no pictures at all)."
        )
    if policy == "skip":
        log.warning("%s; these items are left out (missing_image=skip).", count)
        return [sample for place, sample in enumerate(samples) if place not in absent]
    log.warning("%s; these items are kept without a picture (missing_image=no_image).", count)
    return [replace(sample, image=None) if place in absent else sample for place, sample in enumerate(samples)]
