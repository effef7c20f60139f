"""Hosts whose weights are shared out over the processes: loaded in parts, the same numbers, adapters upon them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmadapter.distributed.launchers import RENDEZVOUS, STARTER
from tests.distributed.checks_together import HELD, outcomes
from tests.families import tiny_host
from tests.hosts.sharded_checks import PICKLED, TYPES, checks


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    for name in TYPES:
        tiny_host(name).save_pretrained(folder / name, max_shard_size="20KB")
    large_host().save_pretrained(folder / "large", max_shard_size="30MB")
    (folder / PICKLED).mkdir()
    for file in (folder / "llama_gqa").glob("*.json"):
        if "index" not in file.name:
            shutil.copy(file, folder / PICKLED)
    torch.save(tiny_host("llama_gqa").state_dict(), folder / PICKLED / "pytorch_model.bin")
    spoil(folder)
    return folder


def large_host():
    """About 110 MB, so that its weights stand out from what every process needs."""
    sizes = {"vocab_size": 2000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=4))


def spoil(folder: Path) -> None:
    """Folders that no host can be loaded from."""
    for name in ("truncated", "missing", "empty", "other shapes"):
        shutil.copytree(folder / "llama_gqa", folder / name)
    (last,) = (folder / "truncated").glob("model-00003-*")
    last.write_bytes(last.read_bytes()[:-100])
    for file in (folder / "empty").glob("model*"):
        file.unlink()
    index = folder / "missing" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = folder / "missing" / content["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    index.write_text(json.dumps(content))
    save_file({k: v for k, v in load_file(file).items() if "layers.1.mlp.up" not in k}, file, {"format": "pt"})
    config = folder / "other shapes" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 40}))


@pytest.fixture(scope="module")
def two(hosts):
    return outcomes(checks, hosts)


@pytest.mark.parametrize("check", [*checks(None), "the end"])
def test_two_processes_share_a_host(check, two):
    outcome = two.get(check, two["the end"])
    assert outcome == HELD, outcome


def test_a_process_holds_its_part_and_the_tensors_in_work(hosts):
    shared = os.environ | {STARTER: str(os.getpid()), RENDEZVOUS: str(hosts / "store of the memory check")}
    shared |= {"WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # glibc shall give back what is freed (see MemoryWatch)
    command = [sys.executable, "-m", "tests.hosts.sharded_memory", hosts]
    ranks = [subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [rank.wait(180) for rank in ranks] == [0, 0]
    room = 16 * 2**20  # the modules, what DeepSpeed notes of each tensor
    for rank in range(2):
        found = json.loads((hosts / f"memory-{rank}.json").read_text())
        most = found["held"] + 2 * found["largest"] + room
        assert 0.8 * found["held"] < found["grown"] < most < 0.75 * found["whole"], (rank, found)
