"""What must hold for hosts whose weights are shared out; see test_sharded.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from mmadapter.distributed.deepspeed import gathered, held_bytes, is_sharded, whole_size
from mmadapter.errors import InputError
from mmadapter.hosts.load import load_host
from mmadapter.hosts.sharded import Sharding, gather_in_forward
from tests.distributed.several import here
from tests.families import (
    FAMILIES,
    adapted_logits,
    adapter_with,
    open_adapter,
    open_v2_adapter,
    random_tokens,
    visual_rows,
    visual_tokens,
)

NOT_SHARED = {"gemma3"} if transformers.__version__.startswith("4.") else set()
TYPES = [name for name in FAMILIES if name not in {"llama_mqa", "llama_bias", "llama_head_dim", *NOT_SHARED}]

METHODS = ("v1", "v1 images", "v2", "v2 lora", "base")
PICKLED = "pytorch_model.bin"  # a folder with such a file, and no safetensors
REFUSED = ("truncated", "missing", "empty", "other shapes")


def attention_of(name: str) -> str:
    return "eager" if name == "gemma2" else "sdpa"


def both(folder: Path, name: str, dtype: torch.dtype, sharding: Sharding):
    """The same host, plain and shared out."""
    plain = load_host(folder / name, dtype, attention_of(name))
    return plain, load_host(folder / name, dtype, attention_of(name), "cpu", sharding)


def check_host(folder: Path, name: str, dtype: torch.dtype = torch.float32, offload: bool = False) -> None:
    plain, shared = both(folder, name, dtype, Sharding(offload))
    assert is_sharded(shared) and not is_sharded(plain)
    assert shared.weights_digest == plain.weights_digest is not None
    assert sum(map(whole_size, plain.parameters())) == sum(map(whole_size, shared.parameters()))
    held, all_of_it = held_bytes(shared.parameters()), held_bytes(plain.parameters())
    padding = sum(16 for _ in shared.parameters())  # a part is rounded up to a whole number of elements
    assert held <= all_of_it / here().world_size + padding, (held, all_of_it)
    ours, theirs = dict(shared.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    with gathered(ours.values()):
        for key, parameter in ours.items():
            assert parameter.dtype == dtype and torch.equal(parameter, theirs[key]), key
            assert not parameter.requires_grad
    assert held_bytes(shared.parameters()) == held  # and shared out again
    buffers = dict(plain.named_buffers())
    for key, buffer in shared.named_buffers():
        assert buffer.dtype == buffers[key].dtype and torch.equal(buffer, buffers[key]), key
    gather_in_forward(shared)
    tokens = random_tokens(2, 9, seed=here().rank)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=tokens).logits, shared(input_ids=tokens).logits)
    assert held_bytes(p for p in shared.parameters() if len(p.ds_shape) > 1) < 0.8 * all_of_it or here().world_size == 1


def check_adapter(folder: Path, name: str, method: str) -> None:
    """An adapter that was drawn on the shared host is the one drawn on the plain host, and acts the same."""
    plain, shared = both(folder, name, torch.float32, Sharding())
    visual = None
    logits, tensors = [], []
    for host in (plain, shared):
        if method.startswith("v1"):
            adapter = open_adapter(host)
            visual = visual_rows(2) if method == "v1 images" else None
        elif method == "base":
            adapter = adapter_with(host, ["all"], ["all"], "all", ["all"], through="base")
            visual = visual_tokens(2)
        else:
            adapter = open_v2_adapter(host, lora=method == "v2 lora")
            visual = visual_tokens(2)
        gather_in_forward(host)
        with torch.no_grad():
            logits.append(adapted_logits(host, adapter, random_tokens(2, 9), visual))
        with gathered(adapter.parameters()):
            tensors.append({key: value.detach().clone() for key, value in adapter.named_parameters()})
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert torch.equal(*logits)


def check_refusal(folder: Path, name: str) -> None:
    """A folder that cannot be used is refused by all, with the words of a plain load."""
    with pytest.raises(InputError) as plain:
        load_host(folder / name, torch.float32)
    with pytest.raises(InputError) as shared:
        load_host(folder / name, torch.float32, sharding=Sharding())
    assert str(shared.value) == str(plain.value)


def checks(folder: Path) -> dict:
    found: dict = {}
    for name in REFUSED:
        found[f"refused {name}"] = partial(check_refusal, folder, name)
    found |= {f"host {name}": partial(check_host, folder, name) for name in [*TYPES, PICKLED]}
    for name in [name for name in TYPES if name in ("llama3_rope", "gemma3", "gpt_neox")]:
        found[f"bfloat16 {name}"] = partial(check_host, folder, name, torch.bfloat16)
    found["offload"] = partial(check_host, folder, "llama_gqa", offload=True)
    adapted = [("llama_gqa", method) for method in METHODS]
    adapted += [("qwen3", "v1 images"), ("gpt_neox", "v2 lora"), ("phi3", "v2 lora")]
    for name, method in adapted:
        found[f"adapter {method} {name}"] = partial(check_adapter, folder, name, method)
    return found
