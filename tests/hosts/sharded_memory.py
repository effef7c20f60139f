"""What loading its part of a host takes: python -m tests.hosts.sharded_memory FOLDER, as one of several ranks.

It must be a process of its own. One that is forked from pytest inherits its heap, and glibc puts tensors of any size
where the tests before had freed memory, and keeps that when they are freed again: with 1.2 GB of such a heap all of the
host shows as grown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from bench.process_memory import MemoryWatch
from mmadapter.distributed.deepspeed import held_bytes, whole_size
from mmadapter.hosts.load import load_host
from mmadapter.hosts.sharded import Sharding
from tests.distributed.several import here, joined


def main(folder: Path) -> None:
    with joined():
        load_host(folder / "llama_gqa", torch.float32, sharding=Sharding())  # imports the libraries
        with MemoryWatch() as watch:
            host = load_host(folder / "large", torch.float32, sharding=Sharding())
        sizes = [4 * whole_size(parameter) for parameter in host.parameters()]
        found = {"held": held_bytes(host.parameters()), "grown": watch.grown_bytes}
        found |= {"whole": sum(sizes), "largest": max(sizes)}
        (folder / f"memory-{here().rank}.json").write_text(json.dumps(found))
        here().barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
