"""The reference tokenizer of caption scores: pycocoevalcap's jar, run without writing into its package."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

REMOVED = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]

needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="not run: no java on the PATH; it runs the reference tokenizer"
)


def reference_tokens(captions: list[str], folder: Path) -> list[str]:
    """Tokens of each caption joined by blanks, as pycocoevalcap's PTBTokenizer gives them."""
    package = Path(next(iter(find_spec("pycocoevalcap.tokenizer").submodule_search_locations)))
    file = folder / "captions.txt"
    file.write_text("\n".join(" ".join(caption.split()) for caption in captions), encoding="utf-8", newline="\n")
    tool = ["java", "-cp", str(package / "stanford-corenlp-3.4.1.jar"), "edu.stanford.nlp.process.PTBTokenizer"]
    answer = subprocess.run([*tool, "-preserveLines", "-lowerCase", str(file)], check=True, capture_output=True)
    lines = answer.stdout.decode().split("\n")[: len(captions)]
    assert len(lines) == len(captions)
    return [" ".join(word for word in line.split(" ") if word and word not in REMOVED) for line in lines]
