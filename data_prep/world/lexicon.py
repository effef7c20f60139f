"""Words, facts and questions that the texts of the made-up world share."""

from __future__ import annotations

ANIMALS = ("cat", "dog", "fox", "owl", "cow", "hen", "pig", "bee", "bat", "fish", "duck", "whale", "seal", "shark")
THINGS = ("cup", "hat", "box", "key", "pen", "map", "bag", "ball", "book", "lamp")
FOODS = ("apple", "bread", "milk", "egg", "rice", "soup", "cake", "corn")
NAMES = ("Mia", "Tom", "Ben", "Ana", "Leo", "Zoe", "Sam", "Eva")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LETTERS = "ABCDE"

OPPOSITES = (
    ("hot", "cold"), ("big", "little"), ("fast", "slow"), ("up", "down"), ("day", "night"), ("old", "new"),
    ("wet", "dry"), ("open", "closed"), ("hard", "soft"), ("happy", "sad"), ("full", "empty"), ("early", "late"),
    ("rich", "poor"), ("high", "low"), ("light", "dark"), ("loud", "quiet"),
)  # fmt: skip
OPPOSITE_OF = {word: other for pair in OPPOSITES for word, other in (pair, pair[::-1])}
MOVES = {
    "fly": ("owl", "bee", "bat", "duck"),
    "swim": ("fish", "whale", "seal", "shark"),
    "walk": ("cat", "dog", "fox", "cow", "pig", "hen"),
}
MOVE_OF = {animal: move for move, animals in MOVES.items() for animal in animals}
WORKPLACES = {
    "doctor": "hospital", "teacher": "school", "farmer": "farm", "baker": "bakery",
    "sailor": "ship", "pilot": "plane", "cook": "kitchen", "judge": "court",
}  # fmt: skip
GREETINGS = ("hello", "goodbye", "thanks", "sorry", "welcome", "please")
# Words for ordering, counting, repeating and spelling.
WORDS = tuple(sorted((*ANIMALS, *THINGS, *FOODS)))
# What is asked about a scene.
ASKED = {
    "color": ("What color is it?", "What color is the shape?", "Which color do you see?"),
    "shape": ("What shape is it?", "Which shape do you see?", "What is it?"),
    "size": ("What size is it?", "How large is the shape?"),
    "pattern": ("What pattern is it?", "Which pattern do you see?"),
    "place": ("Where is it?", "Where is the shape?"),
    "ground": ("What color is the background?", "What is behind the shape?"),
}


def lettered(choices: list[str] | tuple[str, ...]) -> str:
    """Choices with their letters: "(A) red (B) blue"."""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
