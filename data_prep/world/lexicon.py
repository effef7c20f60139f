"""Words and facts of the made-up world that have no picture."""

from __future__ import annotations

ANIMALS = ("cat", "dog", "fox", "owl", "cow", "hen", "pig", "bee", "bat", "fish", "duck", "whale", "seal", "shark")
THINGS = ("cup", "hat", "box", "key", "pen", "map", "bag", "ball", "book", "lamp")
FOODS = ("apple", "bread", "milk", "egg", "rice", "soup", "cake", "corn")
NAMES = ("Mia", "Tom", "Ben", "Ana", "Leo", "Zoe", "Sam", "Eva")
NUMBERS = tuple(str(number) for number in range(21))
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


def lettered(choices: list[str] | tuple[str, ...]) -> str:
    """Choices with their letters: "(A) red (B) blue"."""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def article(word: str) -> str:
    """The word with "a" or "an" before it."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
