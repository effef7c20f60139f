"""Sentences about a scene: five captions a picture, and the looser descriptions that the language model reads."""

from __future__ import annotations

import random

from data_prep.world.scenes import Scene

WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
ARTICLES = {"orange": "an"}


def thing(scene: Scene) -> str:
    """The object with its adjectives: "a large striped red circle"."""
    return f"a {scene.size} {scene.pattern} {scene.color} {scene.shape}"


def captions(scene: Scene) -> list[str]:
    """Five captions of a scene; each names everything that the scene holds."""
    if scene.companion is not None:
        return _pair_captions(scene)
    what, where, ground = thing(scene), WHERE[scene.place], scene.ground
    return [
        f"A{what[1:]} {where} of a {ground} background.",
        f"A {ground} background with {what} {where}.",
        f"There is {what} {where}, and the background is {ground}.",
        f"The picture shows {what} {where} of a {ground} background.",
        f"{where.capitalize()} of a {ground} background is {what}.",
    ]


def short_caption(scene: Scene) -> str:
    """One caption that names colour, shape and background: what the quick start learns within minutes."""
    article = ARTICLES.get(scene.color, "a").capitalize()
    return f"{article} {scene.color} {scene.shape} on a {scene.ground} background."


def short_attributes(scene: Scene) -> dict[str, str]:
    """What the short caption names, by attribute."""
    return {"color": scene.color, "shape": scene.shape, "background": scene.ground}


def _pair_captions(scene: Scene) -> list[str]:
    other = scene.companion
    assert other is not None
    first = f"{ARTICLES.get(scene.color, 'a')} {scene.color} {scene.shape}"
    second = f"{ARTICLES.get(other.color, 'a')} {other.color} {other.shape}"
    both = f"{first} {other.relation} {second}"
    return [
        f"{both.capitalize()} on a {scene.ground} background.",
        f"A {scene.ground} background with {both}.",
        f"There is {both}, and the background is {scene.ground}.",
        f"The picture shows {both} on a {scene.ground} background.",
        f"On a {scene.ground} background is {both}.",
    ]


def tags(scene: Scene, rng: random.Random, names: list[str]) -> str:
    """The scene as a short list of words in any order: "left, red, white ground, circle"."""
    words = [f"{scene.ground} ground" if name == "ground" else scene.value(name) for name in names]
    rng.shuffle(words)
    return ", ".join(words)


def statements(scene: Scene, rng: random.Random, names: list[str]) -> list[str]:
    """One sentence an attribute, in any order."""
    sentences = [statement(name, scene.value(name), rng) for name in names]
    rng.shuffle(sentences)
    return sentences


def statement(attribute: str, value: str, rng: random.Random) -> str:
    """One sentence that tells one attribute."""
    if attribute == "place":
        return rng.choice(["It is {}.", "The shape is {}.", "You find it {}."]).format(WHERE[value])
    if attribute == "shape":
        return rng.choice(["It is a {}.", "The shape is a {}.", "This is a {}."]).format(value)
    if attribute == "ground":
        return rng.choice(["The background is {}.", "It is on a {} background.", "Behind it all is {}."]).format(value)
    return rng.choice(["It is {}.", "The shape is {}.", "It looks {}."]).format(value)
