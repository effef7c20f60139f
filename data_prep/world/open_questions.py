"""Open instructions about pictures, with the words that a right answer holds and those that it must not hold."""

from __future__ import annotations

import random
from typing import Any

from data_prep.world.scenes import VALUES, Scene

# No wording stands in the captions, in the instructions, or in the text that the tiny LLaMA has read.
WORDINGS = {
    "color": ("Tell me the color of the largest shape.", "Look at the picture. Which color does the shape have?"),
    "shape": ("Tell me what the largest shape is.", "Look at the picture. Which shape does it show?"),
    "size": ("Tell me the size of the largest shape.", "Look at the picture. Which size does the shape have?"),
    "pattern": ("Tell me the pattern of the largest shape.", "Look at the picture. Which pattern does the shape have?"),
    "place": ("Tell me the place of the largest shape.", "Look at the picture. Which place does the shape have?"),
    "ground": ("Tell me the color of the background.", "Look at the picture. Which color does the background have?"),
}


def open_questions(scene: Scene, image: str, rng: random.Random) -> list[dict[str, Any]]:
    """One item an attribute of a scene with one object, in one of its wordings; `image` is the picture's path."""
    assert scene.companion is None, "with two objects an attribute has two values"
    return [
        {
            "instruction": rng.choice(WORDINGS[name]),
            "image": image,
            "attribute": name,
            "answer": scene.value(name),
            "wrong": [value for value in values if value != scene.value(name)],
            "unasked": [value for other in VALUES if other != name for value in VALUES[other]],
        }
        for name, values in VALUES.items()
    ]
