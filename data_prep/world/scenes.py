"""Scenes of the made-up world and how they are drawn: one object with many attributes, or two objects in a relation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

COLORS = {
    "red": (215, 35, 35),
    "blue": (40, 80, 225),
    "green": (30, 150, 55),
    "yellow": (245, 220, 40),
    "orange": (245, 130, 20),
    "purple": (135, 50, 175),
    "pink": (250, 140, 190),
    "brown": (120, 70, 30),
}
GROUNDS = {"white": (250, 250, 250), "black": (15, 15, 15), "gray": (135, 135, 135), "beige": (225, 205, 165)}
RADII = {"small": 9.0, "medium": 13.0, "large": 17.5}
PLACES = {"left": (19, 32), "right": (45, 32), "top": (32, 19), "bottom": (32, 45), "middle": (32, 32)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
PATTERNS = ("plain", "striped", "dotted", "hollow")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": tuple(RADII),
    "pattern": PATTERNS,
    "place": tuple(PLACES),
    "ground": tuple(GROUNDS),
}

SIDE = 64
_OVERSAMPLING = 4
# Polygons on the unit circle, the y axis pointing down.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0.0, -1.05), (0.72, 0.0), (0.0, 1.05), (-0.72, 0.0)],
    "star": [
        (0.0, -1.1), (0.26, -0.36), (1.05, -0.34), (0.42, 0.14), (0.65, 0.89),
        (0.0, 0.44), (-0.65, 0.89), (-0.42, 0.14), (-1.05, -0.34), (-0.26, -0.36),
    ],
    "cross": [
        (-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32), (1.0, 0.32), (0.32, 0.32),
        (0.32, 1.0), (-0.32, 1.0), (-0.32, 0.32), (-1.0, 0.32), (-1.0, -0.32), (-0.32, -0.32),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Companion:
    """A second object: where the first one stands from it, and what it is."""

    relation: str
    color: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in words; `jitter` moves and scales it a little without changing the words."""

    color: str
    shape: str
    size: str
    pattern: str
    place: str
    ground: str
    companion: Companion | None = None
    jitter: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))

    def value(self, attribute: str) -> str:
        """The word for one attribute (a key of VALUES)."""
        return str(getattr(self, attribute))


def random_scene(rng: random.Random, **fixed: str) -> Scene:
    """A scene with one object; every attribute that is not fixed is drawn uniformly."""
    words = {name: fixed.get(name) or rng.choice(values) for name, values in VALUES.items()}
    jitter = (rng.uniform(-2.5, 2.5), rng.uniform(-2.5, 2.5), rng.uniform(-0.08, 0.08))
    return Scene(jitter=jitter, **words)  # type: ignore[arg-type]


def random_pair(rng: random.Random) -> Scene:
    """A scene with two medium plain objects that differ in colour and shape."""
    scene = random_scene(rng, size="medium", pattern="plain", place="middle")
    color = rng.choice([c for c in COLORS if c != scene.color])
    shape = rng.choice([s for s in SHAPES if s != scene.shape])
    return replace(scene, companion=Companion(rng.choice(list(RELATIONS)), color, shape))


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, 64 x 64, smooth edges."""
    side = SIDE * _OVERSAMPLING
    picture = Image.new("RGB", (side, side), GROUNDS[scene.ground])
    dx, dy, growth = scene.jitter
    radius = RADII[scene.size] * (1 + growth)
    x, y = PLACES[scene.place]
    if scene.companion is None:
        _draw_object(picture, scene.color, scene.shape, scene.pattern, (x + dx, y + dy), radius, scene.ground)
    else:
        step_x, step_y = RELATIONS[scene.companion.relation]
        first, second = (x + dx + 15 * step_x, y + dy + 15 * step_y), (x + dx - 15 * step_x, y + dy - 15 * step_y)
        _draw_object(picture, scene.color, scene.shape, scene.pattern, first, radius, scene.ground)
        _draw_object(picture, scene.companion.color, scene.companion.shape, "plain", second, radius, scene.ground)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_object(
    picture: Image.Image,
    color: str,
    shape: str,
    pattern: str,
    center: tuple[float, float],
    radius: float,
    ground: str,
) -> None:
    mask = _shape_mask(picture.size, shape, center, radius)
    picture.paste(COLORS[color], mask=mask)
    if pattern == "hollow":
        picture.paste(GROUNDS[ground], mask=_shape_mask(picture.size, shape, center, radius * 0.58))
    elif pattern != "plain":
        dark = tuple(int(channel * 0.35) for channel in COLORS[color])
        marks = Image.new("L", picture.size, 0)
        _draw_marks(ImageDraw.Draw(marks), pattern, center, radius)
        picture.paste(dark, mask=Image.composite(marks, Image.new("L", picture.size, 0), mask))


def _shape_mask(size: tuple[int, int], shape: str, center: tuple[float, float], radius: float) -> Image.Image:
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    x, y, r = (value * _OVERSAMPLING for value in (*center, radius))
    if shape == "circle":
        pen.ellipse((x - 0.95 * r, y - 0.95 * r, x + 0.95 * r, y + 0.95 * r), fill=255)
    else:
        pen.polygon([(x + px * r, y + py * r) for px, py in _OUTLINES[shape]], fill=255)
    return mask


def _draw_marks(pen: ImageDraw.ImageDraw, pattern: str, center: tuple[float, float], radius: float) -> None:
    """Dark stripes (horizontal) or dots; their spacing grows with the object."""
    x, y, r = (value * _OVERSAMPLING for value in (*center, radius))
    rows = (-0.8, -0.4, 0.0, 0.4, 0.8) if pattern == "striped" else (-0.75, -0.25, 0.25, 0.75)
    for row in rows:
        if pattern == "striped":
            pen.rectangle((x - 1.2 * r, y + (row - 0.1) * r, x + 1.2 * r, y + (row + 0.1) * r), fill=255)
            continue
        for column in rows:
            dot = (x + (column - 0.14) * r, y + (row - 0.14) * r, x + (column + 0.14) * r, y + (row + 0.14) * r)
            pen.ellipse(dot, fill=255)
