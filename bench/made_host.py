"""A LLaMA with random weights of a wanted size, as a folder that a user would have."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmadapter.hosts.settings import TINY_HOST

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def save_made_host(folder: Path, width: int, layers: int, shard_mb: int = 64) -> int:
    """Writes it in shards of `shard_mb` MB, with the shipped tokenizer; returns its bytes (float32)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig.from_pretrained(TINY_HOST)
    config = LlamaConfig(
        vocab_size=small.vocab_size,
        hidden_size=width,
        intermediate_size=width * 11 // 4 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        num_key_value_heads=max(width // 64, 1),
        max_position_embeddings=small.max_position_embeddings,
        bos_token_id=small.bos_token_id,
        eos_token_id=small.eos_token_id,
        pad_token_id=small.pad_token_id,
    )
    torch.manual_seed(0)
    host = LlamaForCausalLM(config)
    host.save_pretrained(folder, max_shard_size=f"{shard_mb}MB")
    for name in TOKENIZER_FILES:
        if (TINY_HOST / name).is_file():
            shutil.copy(TINY_HOST / name, folder / name)
    return sum(parameter.numel() * parameter.element_size() for parameter in host.parameters())
