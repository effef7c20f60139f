"""Hostile input, by hand and by mutation, judged: `python -m tests.hostile [--seed N]`.

It stands with the tests, because it reads files that tests write, and is a command, because it counts: one process
takes some 500 inputs in a minute, which as tests of their own would take five. Prints a table, and each input that did
not end in a clear message or right behaviour; exit status 1 where there is one. The same seed makes the same mutations.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default 0)")
    parser.add_argument("--mutations", type=int, default=240, help="how many (default 240)")
    parser.add_argument("--only", nargs="+", default=[""], help="the cases whose kind or name has one of these in it")
    parser.add_argument("--seconds", type=float, default=30, help="that one case may take (default 30)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs; they stay")
    options = parser.parse_args(words)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(1)
    from tests.hostile.cases import picked
    from tests.hostile.judging import GOOD, judged, table
    from tests.hostile.layouts import encoder
    from tests.hostile.mutations import mutated

    folder = options.keep or Path(tempfile.mkdtemp(prefix="hostile-"))
    os.environ["TMPDIR"] = str(folder)
    encoder()  # what takes seconds to import counts for no case
    print(f"seed {options.seed}", flush=True)
    started, outcomes = time.monotonic(), []
    try:
        for number, case in enumerate([*picked(folder / "shared"), *mutated(options.mutations, options.seed)]):
            if any(word in f"{case.kind}: {case.name}" for word in options.only):
                outcomes.append(judged(case, folder / f"{number:03d}", options.seconds))
                if options.keep is None:
                    shutil.rmtree(folder / f"{number:03d}", ignore_errors=True)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    bad = [one for one in outcomes if one.verdict not in GOOD]
    for one in bad:
        print(
            f"\n{one.verdict.upper()}: {one.case.kind}: {one.case.name}\n  " + one.message.strip().replace("\n", "\n  ")
        )
    print(f"\n{table(outcomes)}")
    good, seconds = len(outcomes) - len(bad), time.monotonic() - started
    print(f"\n{good} of {len(outcomes)} inputs end as they should; seed {options.seed}; {seconds:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
