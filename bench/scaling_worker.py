"""One process of one case of bench.scaling: loads, trains some steps, saves, restores; writes what it measured."""

from __future__ import annotations

import json
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import torch

from bench.case import composed
from bench.process_memory import MemoryWatch
from mmadapter.data.batches import Batch, make_batch
from mmadapter.data.samples import ANSWER, Sample, Segment
from mmadapter.data.tokens import Encoded
from mmadapter.distributed.deepspeed import held_bytes
from mmadapter.distributed.ranks import Ranks, connected
from mmadapter.hosts.sharded import Sharding
from mmadapter.model import AdaptedModel
from mmadapter.training.checkpoint import CheckpointFolder, Position, Snapshot
from mmadapter.training.determinism import random_state
from mmadapter.training.engine import Engine
from mmadapter.training.run import device_of, groups_of
from mmadapter.training.settings import ENGINES

LR = 1e-3


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Everything that is measured on this process."""
    conf = composed(case["overrides"])
    torch.set_num_threads(case["threads"])
    device = device_of(conf.engine.device)
    with connected(device, group_of_one=conf.engine.name != "single") as ranks:
        first = composed(["host=tiny", "vision=none", "adapter=v1", "adapter.prompts.layers=1"])
        AdaptedModel.build(first.host, first.vision, first.adapter, device=device)  # imports
        parts = (conf.host, conf.vision, conf.adapter, conf.seed)
        sharding = Sharding(conf.engine.offload) if conf.engine.stage == 3 else None
        with MemoryWatch() as loading:
            model = AdaptedModel.build(*parts, device, sharding)
        with MemoryWatch() as training:
            model.train()
            engine = ENGINES.load(conf.engine.name)(
                model, groups_of(conf, model), conf.optimizer, conf.seed, conf.engine, ranks
            )
            seconds = step_seconds(engine, case, model.tokenizer.vocab_size, ranks)
        trained = {id(item.parameter) for item in model.trainable_parameters()}
        frozen = [parameter for parameter in model.host.parameters() if id(parameter) not in trained]
        return {
            "rank": ranks.rank,
            "loading_peak": loading.grown_bytes,
            "training_peak": training.grown_bytes,
            "frozen_bytes": held_bytes(frozen),
            "step_seconds": seconds,
            **save_and_restore(engine, Path(case["folder"]), ranks),
        }


def step_seconds(engine: Engine, case: dict[str, Any], vocabulary: int, ranks: Ranks) -> list[float]:
    """Of each step but the first, which makes buffers."""
    steps = [own_part(step_batch(case, number, vocabulary), ranks) for number in range(2)]
    engine.step([steps[0]], LR)
    seconds = []
    for number in range(case["steps"]):
        ranks.barrier()
        started = time.perf_counter()
        engine.step([steps[number % 2]], LR)
        seconds.append(time.perf_counter() - started)
    return seconds


def step_batch(case: dict[str, Any], number: int, vocabulary: int) -> list[Encoded]:
    """The samples of one step, over all processes: random tokens, the second half supervised."""
    generator = torch.Generator().manual_seed(number)
    sample = Sample("0", "bench", (Segment("made", ANSWER),), None, "made")
    rows = torch.randint(8, vocabulary, (case["batch"], case["tokens"]), generator=generator)
    return [Encoded(sample, array("i", row.tolist()), ((len(row) // 2, len(row)),)) for row in rows]


def own_part(samples: list[Encoded], ranks: Ranks) -> Batch:
    """Every process the same number of samples of the same length."""
    return make_batch(samples[ranks.rank :: ranks.world_size], pad_id=0)


def save_and_restore(engine: Engine, folder: Path, ranks: Ranks) -> dict[str, float]:
    """Seconds of a checkpoint (gathered from all, written and flushed by the first) and of taking it up again."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    ranks.barrier()
    started = time.perf_counter()
    state = engine.state_dict()
    if ranks.is_first:
        checkpoints.save(Snapshot(Position(step=1), state, *random_state()))
    ranks.barrier()
    saved = time.perf_counter()

    snapshot, _ = checkpoints.load_newest_together(ranks)
    assert snapshot is not None
    engine.load_state_dict(snapshot.engine)
    ranks.barrier()
    return {"save_seconds": saved - started, "restore_seconds": time.perf_counter() - saved}


if __name__ == "__main__":
    case_file = Path(sys.argv[1])
    result = measure(json.loads(case_file.read_text()))
    case_file.with_name(f"rank-{result['rank']}.json").write_text(json.dumps(result))
