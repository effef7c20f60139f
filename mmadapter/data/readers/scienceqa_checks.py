"""What one ScienceQA question must look like; used where questions are read and where a folder is checked."""

from __future__ import annotations

import re
from typing import Any

from mmadapter.data.templates import scienceqa_format

REQUIRED_TEXT = ("question", "hint", "subject", "grade", "split")
OPTIONAL_TEXT = ("task", "topic", "category", "skill", "lecture", "solution")
SPLITS = ("train", "val", "test")
SUBJECTS = ("natural science", "social science", "language science")
CHOICES = range(2, 6)


def problem_defects(problem: Any, prompt_format: str = "QCM-A") -> list[str]:
    """All that is wrong with one question, each as "field: got, allowed"; empty where it is sound.

    `lecture` and `solution` must be there only where `prompt_format` uses them.
    """
    if not isinstance(problem, dict):
        return [f"it is {_shown(problem)}, not an object with question, choices, answer, ..."]
    used = "".join(scienceqa_format(prompt_format))
    needed = {"lecture"} if "L" in used else set()
    needed |= {"solution"} if "E" in used else set()
    if used.endswith(("AL", "AE")):
        needed = {"lecture", "solution"} if len(needed) == 2 else {"lecture", "solution"} - needed
    defects = _text_defects(problem, needed)
    return defects + _choice_defects(problem) + _value_defects(problem)


def _text_defects(problem: dict[str, Any], needed: set[str]) -> list[str]:
    defects = []
    for name in REQUIRED_TEXT + OPTIONAL_TEXT:
        if name not in problem:
            if name in REQUIRED_TEXT or name in needed:
                defects.append(f"the field `{name}` is missing")
        elif not isinstance(problem[name], str):
            defects.append(f"`{name}` is {_shown(problem[name])}; it must be text")
    if "image" not in problem:
        defects.append("the field `image` is missing (a file name, or null)")
    elif problem["image"] is not None and not (isinstance(problem["image"], str) and problem["image"]):
        defects.append(f"`image` is {_shown(problem['image'])}; it must be a file name or null")
    return defects


def _choice_defects(problem: dict[str, Any]) -> list[str]:
    choices, answer = problem.get("choices"), problem.get("answer")
    if "choices" not in problem:
        return ["the field `choices` is missing"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return [f"`choices` is {_shown(choices)}; it must be a list of texts"]
    defects = []
    if len(choices) not in CHOICES:
        defects.append(f"`choices` has {len(choices)} entries; allowed are {CHOICES[0]} to {CHOICES[-1]}")
    if "answer" not in problem:
        defects.append("the field `answer` is missing")
    elif not isinstance(answer, int) or isinstance(answer, bool):
        defects.append(f"`answer` is {_shown(answer)}; it must be a whole number, the index of a choice")
    elif not 0 <= answer < len(choices):
        defects.append(f"`answer` is {answer}; with {len(choices)} choices it must be 0 to {len(choices) - 1}")
    return defects


def _value_defects(problem: dict[str, Any]) -> list[str]:
    defects = []
    if isinstance(question := problem.get("question"), str) and not question.strip():
        defects.append("`question` is empty")
    if isinstance(split := problem.get("split"), str) and split not in SPLITS:
        defects.append(f"`split` is {split!r}; allowed: {', '.join(SPLITS)}")
    if isinstance(subject := problem.get("subject"), str) and subject not in SUBJECTS:
        defects.append(f"`subject` is {subject!r}; allowed: {', '.join(SUBJECTS)}")
    if isinstance(grade := problem.get("grade"), str) and not re.fullmatch(r"grade([1-9]|1[0-2])", grade):
        defects.append(f"`grade` is {grade!r}; allowed: grade1 to grade12")
    if isinstance(image := problem.get("image"), str) and re.search(r"[/\\]|^\.\.?$", image):
        defects.append(f"`image` is {image!r}; it must be a bare file name, found at images/SPLIT/ID/")
    return defects


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
