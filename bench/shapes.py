"""The hosts that are measured: made ones with random weights, and a real one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.hosts.load import hide_library_bars
from mmadapter.hosts.settings import TINY_HOST, models_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Shape:
    """A host, how much of it is adapted, and the batches that train it."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    prompt_layers: int
    batch: int  # samples a step
    longest: int = 512  # tokens of a sample; what `as_published` pads to
    folder: str | None = None  # of real weights, below MMADAPTER_MODELS; None: made, with random weights
    needs_gpu: bool = False


SHAPES = {
    "tiny": Shape(64, 2, 2, 1148, prompt_layers=1, batch=2, longest=96),
    "small": Shape(512, 8, 8, 32000, prompt_layers=6, batch=8),
    "mid": Shape(1024, 12, 16, 32000, prompt_layers=10, batch=4),
    "smollm2": Shape(576, 30, 9, 49152, prompt_layers=29, batch=8, folder="smollm2"),
    "7b": Shape(4096, 32, 32, 32000, prompt_layers=30, batch=8, needs_gpu=True),
}
LENGTH = 10  # prompts of an adapted layer


def missing(shape: Shape) -> str | None:
    """Why this shape cannot be measured here, and how it could; None where it can."""
    import torch

    if shape.needs_gpu and not torch.cuda.is_available():
        return "needs a GPU with 40 GB"
    if shape.folder is not None and not (models_folder() / shape.folder).is_dir():
        return f"needs its weights: mmadapter pretrained {shape.folder} (or MMADAPTER_MODELS=FOLDER)"
    return None


def host_of(shape: Shape, scratch: Path) -> Path:
    """The folder of the shape's host; a made one is written below `scratch`."""
    if shape.folder is not None:
        return models_folder() / shape.folder
    inner = -(-shape.width * 8 // 3 // 256) * 256 if shape.width >= 256 else shape.width * 3  # as LLaMA's own
    save_made_host(scratch / "host", shape.width, shape.layers, shape.heads, inner, shape.vocabulary)
    return scratch / "host"


def save_made_host(folder: Path, width: int, layers: int, heads: int, inner: int, vocabulary: int | None = None) -> int:
    """A LLaMA with random weights, as a folder that a user would have; returns its bytes (float32).

    It never ends an answer: the logit of end-of-text is 0 and others are above. So all answers have the asked length.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hide_library_bars()
    small = LlamaConfig.from_pretrained(TINY_HOST)
    config: Any = LlamaConfig(
        vocab_size=vocabulary or small.vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        initializer_range=width**-0.5,  # layers keep the size of what passes them, so a wrong one shows in the loss
        max_position_embeddings=small.max_position_embeddings,
        bos_token_id=small.bos_token_id,
        eos_token_id=small.eos_token_id,
        pad_token_id=small.pad_token_id,
    )
    torch.manual_seed(0)
    host = LlamaForCausalLM(config)
    with torch.no_grad():
        host.get_output_embeddings().weight[small.eos_token_id] = 0
    host.save_pretrained(folder, max_shard_size="64MB" if vocabulary is None else "4GB")
    for name in TOKENIZER_FILES:
        if (TINY_HOST / name).is_file():
            shutil.copy(TINY_HOST / name, folder / name)
    return sum(parameter.numel() * parameter.element_size() for parameter in host.parameters())
