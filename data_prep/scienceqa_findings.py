"""What is found in a ScienceQA folder: every defect with file, id and field, counted by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.picture_check import decode_pictures
from mmadapter.data.readers.scienceqa import (
    WHOLE_SPLITS,
    find_file,
    image_path,
    image_root,
    read_captions,
    read_problems,
    read_splits,
)
from mmadapter.data.readers.scienceqa_checks import problem_defects
from mmadapter.errors import InputError

EXAMPLES = 5
OFFICIAL_SIZES = {
    "train": 12726,
    "val": 4241,
    "test": 4241,
    "trainval": 16967,
    "minitrain": 1272,
    "minival": 424,
    "minitest": 424,
}
ABSENT = "image missing"
ABSENT_ID = "ids without a question in problems.json"


@dataclass
class Split:
    """One split's ids: as named, as found in problems.json, and as kept after `settle`."""

    named: list[str]
    here: list[str]
    with_image: int = 0
    image_absent: int = 0
    kept: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class Findings:
    """A ScienceQA folder's content with what is wrong with it; `settle` decides what that means."""

    file: Path
    images: Path
    inputs: list[Path]
    problems: dict[str, Any]
    splits: dict[str, Split] = field(default_factory=dict)
    defects: dict[str, dict[str, str]] = field(default_factory=dict)
    """reason -> id -> what"""
    general: list[str] = field(default_factory=list)
    """defects of no single item"""
    decoded: int = 0
    without_image: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, reason: str, pid: str, what: str) -> None:
        """Notes a defect of question `pid`; the first one of a reason stands."""
        self.defects.setdefault(reason, {}).setdefault(pid, what)

    def settle(self, skip_bad: bool, missing_image: str) -> None:
        """Splits the defects into failures and explained losses, and fills every split's `kept`."""
        dropped: dict[str, str] = {}
        for reason, items in self.defects.items():
            line = f"{reason}: {len(items):,}, the first: " + "; ".join(list(items.values())[:EXAMPLES])
            if reason == ABSENT and missing_image == "blank":
                self.without_image |= items.keys()
                self.notes.append(f"{line} (kept without an image, --missing-image blank)")
            elif skip_bad if reason != ABSENT else missing_image == "skip":
                dropped.update({pid: reason for pid in items if pid not in dropped})
                self.notes.append(f"{line} (left out)")
            else:
                self.failures.append(line)
        (self.notes if skip_bad else self.failures).extend(self.general)
        for split in self.splits.values():
            split.kept = [pid for pid in split.here if pid not in dropped]
            split.dropped = Counter(dropped[pid] for pid in split.named if pid in dropped)


def examine(root: Path, decode: int | None, limit: int | None, workers: int, captions: Path | None) -> Findings:
    """Reads a folder and finds all defects; `decode` says how many images are decoded, None: all."""
    file = find_file(root, None, "problems.json")
    findings = Findings(file, image_root(root, file), [file], read_problems(file))
    _find_bad_questions(findings)
    _read_splits(findings, root, limit)
    _check_captions(findings, root, captions)
    present = _find_absent_images(findings)
    _decode(findings, present, decode, workers)
    _count_repeated_questions(findings)
    return findings


def _find_bad_questions(findings: Findings) -> None:
    for pid, problem in findings.problems.items():
        if defects := problem_defects(problem):
            findings.add("bad question", pid, f"question {pid}, {defects[0]}")


def _read_splits(findings: Findings, root: Path, limit: int | None) -> None:
    try:
        file = find_file(root, None, "pid_splits.json")
    except InputError:
        named = _splits_by_field(findings)
        findings.notes.append("there is no pid_splits.json: the questions' own `split` decides")
    else:
        findings.inputs.append(file)
        named = read_splits(file)
    for name, ids in named.items():
        ids = ids[:limit]
        findings.splits[name] = Split(ids, [pid for pid in ids if pid in findings.problems])
    _compare_splits(findings)
    others = [f"{name} {OFFICIAL_SIZES[name]:,}" for name, ids in named.items() if _is_other_size(name, ids)]
    if others:
        findings.notes.append(f"not the official ScienceQA, whose sizes are: {', '.join(others)}")


def _is_other_size(name: str, ids: list[str]) -> bool:
    return name in OFFICIAL_SIZES and len(ids) != OFFICIAL_SIZES[name]


def _splits_by_field(findings: Findings) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for pid, problem in findings.problems.items():
        if isinstance(problem, dict) and isinstance(problem.get("split"), str):
            splits.setdefault(problem["split"], []).append(pid)
    return splits


def _compare_splits(findings: Findings) -> None:
    owner: dict[str, str] = {}
    for name, split in findings.splits.items():
        for pid in split.named:
            if pid not in findings.problems:
                findings.add(ABSENT_ID, pid, f"{pid} ({name})")
        wanted = WHOLE_SPLITS.get(name.replace("mini", ""), ())
        for pid in split.here:
            problem = findings.problems[pid]
            own = problem.get("split") if isinstance(problem, dict) else None
            if wanted and own is not None and own not in wanted:
                findings.add("split differs", pid, f"question {pid} is in {name}, its own `split` is {own!r}")
        if name in ("train", "val", "test"):
            for pid in split.named:
                if owner.setdefault(pid, name) != name:
                    findings.add("id in two splits", pid, f"question {pid} is in {owner[pid]} and in {name}")
    known = {pid for split in findings.splits.values() for pid in split.named}
    if unnamed := sum(pid not in known for pid in findings.problems):
        findings.notes.append(f"{unnamed:,} questions are named by no split and are ignored")


def _check_captions(findings: Findings, root: Path, named: Path | None) -> None:
    try:
        file = find_file(root, named, "captions.json")
    except InputError:
        if named is not None:
            raise
        return
    findings.inputs.append(file)
    named_ids = (pid for split in findings.splits.values() for pid in split.named)
    known = dict.fromkeys([*named_ids, *findings.problems])
    captions = read_captions(file.parent, file, known)
    if unknown := [pid for pid in captions if pid not in known]:
        first = ", ".join(unknown[:EXAMPLES])
        findings.general.append(f"unknown caption ids: {len(unknown):,} in {file.name}, the first: {first}")


def _find_absent_images(findings: Findings) -> dict[str, Path]:
    """The image files that are there, by question; absent ones become defects."""
    bad = findings.defects.get("bad question", {})
    found: dict[str, Path] = {}
    absent: set[str] = set()
    for split in findings.splits.values():
        for pid in split.here:
            path = None if pid in bad else image_path(findings.images, pid, findings.problems[pid])
            if path is None:
                continue
            split.with_image += 1
            if pid not in found and pid not in absent:
                if path.is_file():
                    found[pid] = path
                else:
                    absent.add(pid)
                    findings.add(ABSENT, pid, str(path.relative_to(findings.images.parent)))
            split.image_absent += pid in absent
    return found


def _decode(findings: Findings, present: dict[str, Path], decode: int | None, workers: int) -> None:
    findings.decoded, bad = decode_pictures(present, decode, findings.images.parent, workers)
    for pid, defect in bad.items():
        findings.add("bad image", pid, defect)


def _count_repeated_questions(findings: Findings) -> None:
    """Counts test questions without an image whose whole text is a train question too."""
    if not {"train", "test"} <= findings.splits.keys():
        return
    texts = {_text(findings.problems[pid]) for pid in findings.splits["train"].here} - {None}
    repeated = sum(_text(findings.problems[pid]) in texts for pid in findings.splits["test"].here)
    if repeated:
        findings.notes.append(f"{repeated:,} test questions without an image are word for word train questions")


def _text(problem: Any) -> str | None:
    if not isinstance(problem, dict) or problem.get("image") is not None:
        return None
    return repr((problem.get("question"), problem.get("hint"), problem.get("choices")))
