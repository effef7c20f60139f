"""Which scores each kind of task has: what tables show, and what jobs of a sweep can be compared by."""

from __future__ import annotations

from mmadapter.config.task import TaskConf

CAPTION_SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
JAVA_SCORES = ("METEOR", "SPICE")
SCIENCEQA_GROUPS = ("NAT", "SOC", "LAN", "TXT", "NO", "G1-6", "G7-12")
# kind of task -> the part of metrics.json that holds its scores (None = the top), the main scores, the others
SCORES_OF: dict[str, tuple[str | None, tuple[str, ...], tuple[str, ...]]] = {
    "scienceqa": ("accuracy", ("Avg", "IMG"), SCIENCEQA_GROUPS),
    "coco_caption": (None, ("CIDEr", "BLEU-4"), (*CAPTION_SCORES, *JAVA_SCORES)),
    "instruct": (None, ("exact_match",), ()),
    "visual_instruct": (None, ("followed", "named"), ()),
}


def scores_of(task: TaskConf) -> list[str]:
    """The scores that a task's settings give, the main ones first; none for captions of a part of the split."""
    if task.name not in SCORES_OF or is_unscored_part(task):
        return []
    left_out = JAVA_SCORES if not task.java_metrics else ()
    _, main, others = SCORES_OF[task.name]
    return [name for name in dict.fromkeys([*main, *others]) if name not in left_out]


def why_no_score(task: TaskConf, key: str, score: str) -> str | None:
    """Why a task of these settings will not have a score that it could have; None where there is no such score."""
    if is_unscored_part(task):
        return (
            f"{key}.limit={task.limit} leaves a part of the split, which is not scored. "
            f"Set {key}.allow_subset=true, or {key}.limit=null"
        )
    if task.name == "coco_caption" and score in JAVA_SCORES:
        return f"{score} is computed with {key}.java_metrics=true only (slow; needs Java)."
    return None


def is_unscored_part(task: TaskConf) -> bool:
    """Whether `limit` makes the captions a part of the split, which nobody asked to score."""
    return task.name == "coco_caption" and bool(task.limit) and not task.allow_subset
