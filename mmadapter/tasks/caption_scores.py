"""Caption scores: BLEU-1 to 4, ROUGE-L and CIDEr (the D form) by pycocoevalcap's own scorers, without Java.

METEOR and SPICE are Java programs, run beside the others where they are asked for and Java and their files are there:
of 5,000 captions METEOR takes minutes, all others together seconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from mmadapter.tasks.ptb_tokens import tokenize_captions

CAPTION_SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
JAVA_SCORES = ("METEOR", "SPICE")
METEOR_JAR, SPICE_JAR = "meteor-1.5.jar", "spice-1.0.jar"
SPICE_PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Tokenized = dict[int, list[str]]
"""Image id -> its captions, each as tokens joined by blanks."""


def caption_scores(
    references: Mapping[int, Sequence[str]], captions: Mapping[int, str], *, java_metrics: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores as fractions (CIDEr: its own scale, up to 10) of one caption an image; which were not computed, and why.

    `references` must hold exactly the images of `captions`, each with at least one caption. CIDEr's document
    frequencies come from these references: with few images it is no measure, with one it is 0.
    """
    order = list(references)
    told, said = tokenized(references), tokenized({id: [captions[id]] for id in order})
    missing = dict.fromkeys(JAVA_SCORES, "not asked for (task.java_metrics=true)")
    if java_metrics:
        missing = {name: reason for name in JAVA_SCORES if (reason := why_not(name)) is not None}
    with ThreadPoolExecutor(len(JAVA_SCORES)) as pool, redirect_stdout(StringIO()):  # some of them print
        waiting = {name: pool.submit(java_score, name, told, said) for name in JAVA_SCORES if name not in missing}
        scores = python_scores(told, said)
        for name, score in waiting.items():
            if error := score.exception():
                missing[name] = f"its program failed ({type(error).__name__}: {error})"
            else:
                scores[name] = score.result()
    return scores, missing


def tokenized(captions: Mapping[int, Sequence[str]]) -> Tokenized:
    """Every caption's tokens; all are tokenised together, in the order given, as the reference does."""
    tokens = iter(tokenize_captions([caption for of_image in captions.values() for caption in of_image]))
    return {id: [next(tokens) for _ in of_image] for id, of_image in captions.items()}


def python_scores(references: Tokenized, captions: Tokenized) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
    rouge, _ = Rouge().compute_score(references, captions)
    cider, _ = Cider().compute_score(references, captions)
    return {name: float(value) for name, value in zip(CAPTION_SCORES, (*bleu, rouge, cider), strict=True)}


def java_folder(name: str) -> Path:
    """Where pycocoevalcap keeps a Java scorer's files."""
    spec = find_spec(f"pycocoevalcap.{name.lower()}")
    assert spec is not None and spec.submodule_search_locations, "pycocoevalcap is a dependency"
    return Path(next(iter(spec.submodule_search_locations)))


def why_not(name: str) -> str | None:
    """What a Java score lacks here, None where it can be computed."""
    folder = java_folder(name)
    wanted = [folder / METEOR_JAR]
    if name == "SPICE":
        wanted = [folder / SPICE_JAR, *(folder / "lib" / file for file in SPICE_PARSER)]
    if shutil.which("java") is None:
        return "Java is needed: no java on the PATH"
    absent = [file for file in wanted if not file.is_file()]
    return f"{', '.join(file.name for file in absent)} missing in {absent[0].parent}" if absent else None


def java_score(name: str, references: Tokenized, captions: Tokenized) -> float:
    return meteor_score(references, captions) if name == "METEOR" else spice_score(references, captions)


def meteor_score(references: Tokenized, captions: Tokenized) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    try:
        score, _ = program.compute_score(references, captions)
    finally:
        if program.lock.locked():  # left so where Java fails; the wrapper's own end would wait for it forever
            program.lock.release()
    return float(score)


def spice_score(references: Tokenized, captions: Tokenized) -> float:
    """The mean F score of SPICE's own program. pycocoevalcap's wrapper is not used: it writes into its package folder
    and fetches the parser from the net."""
    entries = [{"image_id": id, "test": captions[id][0], "refs": told} for id, told in references.items()]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(entries), encoding="utf-8")
        command = ["java", "-jar", "-Xmx8G", str(java_folder("SPICE") / SPICE_JAR), str(asked)]
        subprocess.run([*command, "-out", str(answered), "-subset", "-silent"], cwd=folder, check=True)
        scores = [entry["scores"]["All"]["f"] for entry in json.loads(answered.read_text(encoding="utf-8"))]
    numbers = [float(score) for score in scores if score is not None]
    return sum(numbers) / len(numbers)
