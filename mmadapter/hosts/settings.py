"""conf/host: the frozen language model that the adapter attaches to; and how it generates. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmadapter.errors import InputError
from mmadapter.settings import choice, input_path, number, plain

TINY = "tiny"  # the name under which the models that ship with the package are asked for
TINY_HOST = Path(__file__).parents[1] / "tiny" / "llama"
# group of settings -> its models that `mmadapter pretrained NAME` writes; conf/GROUP/NAME.yaml has their settings
PREPARED = {"host": ("smollm2", "gemma3_270m"), "vision": ("dinov2_small", "efficientnet_lite0")}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # ORG/NAME


@dataclass
class HostConf:
    """The frozen language model that the adapter attaches to."""

    path: str | None = input_path()  # folder in transformers layout; "tiny" = the shipped one; ORG/NAME = of the Hub
    tokenizer: str | None = input_path()  # folder or tokenizer.model; null = the host's own folder
    # of the frozen weights; auto = bfloat16 on a GPU, float32 on every CPU: without AMX or AVX512-BF16 bfloat16 is much
    # slower there, and with them a run that goes on or is repeated on another CPU would give other numbers
    dtype: str = choice("auto", "float32", "bfloat16")
    # how the linear layers of the blocks are stored: null = in dtype; int8 = 8 bits, one scale an output; nf4 = 4 bits
    # (QLoRA's; needs the extra [quant]). A smaller host and a rounded one; embeddings, norms and head stay in dtype
    quantization: str | None = choice(None, "int8", "nf4", came_later=True)
    attention: str = choice("sdpa", "eager", "flex")  # attention kernel; flex only on a GPU (on CPU it has no backward)
    activation_checkpointing: bool = plain(False, influence=False)  # recompute in the backward: less memory, slower
    max_tokens: int = number(512, at_least=8)  # tokens of context used, prompt and answer together; paper: 512
    # whether its token stands in front of every text; auto = where the host's own tokenizer puts it
    begin_of_text: str = choice("auto", "always", "never")

    def dtype_on(self, device: object) -> str:
        """What `dtype` means on this device, "float32" or "bfloat16"."""
        return self.dtype if self.dtype != "auto" else "bfloat16" if str(device).startswith("cuda") else "float32"

    def contradictions(self, key: str) -> Iterator[str]:
        if self.path != TINY:
            try:
                local_host_folder(self.path)
            except InputError as error:
                yield str(error)
        if self.tokenizer is not None and not Path(self.tokenizer).expanduser().exists():
            yield f"{key}.tokenizer={self.tokenizer}: no such file or folder."


@dataclass
class GenerationConf:
    """How answers are generated."""

    max_new_tokens: int = number(64, at_least=1)  # tokens of the answer
    temperature: float = number(0.0, at_least=0)  # 0 = greedy (ScienceQA); paper: 0.1 for instructions
    top_p: float = number(1.0, above=0, at_most=1)  # of nucleus sampling; paper: 0.75 for instructions
    beams: int = number(1, at_least=1)  # of beam search; 1 = none

    def contradictions(self, key: str) -> Iterator[str]:
        below = f"{key}." if key else ""
        if self.beams > 1 and self.temperature > 0:
            yield (
                f"{below}beams={self.beams} with {below}temperature={self.temperature:g}: beam search does not sample. "
                f"Set {below}temperature=0 or {below}beams=1"
            )


def models_folder() -> Path:
    """Where `mmadapter pretrained` puts models: the environment variable MMADAPTER_MODELS, else models/ right here."""
    return Path(os.environ.get("MMADAPTER_MODELS") or "models").expanduser()


def host_folder(path: str | None, weights: bool = True) -> Path:
    """The folder that `host.path` names, fetched from the Hub where it is ORG/NAME and no folder.

    `weights` False: configuration and tokenizer are enough, so no weights are fetched. Raises InputError where it is
    not set, is no model folder in `transformers` layout, or cannot be fetched.
    """
    folder = local_host_folder(path)
    if folder is None:
        from mmadapter.hosts.hub import fetched

        folder = fetched(str(path), weights)
    return folder


def local_host_folder(path: str | None) -> Path | None:
    """The folder that `host.path` names; "tiny" is the host that comes with the package, None is a model of the Hub.

    Raises InputError where it is not set, or is no model folder in `transformers` layout. Reaches no network.
    """
    if path is None:
        raise InputError(
            "host.path is not set. Give the folder of your language model: host.path=/models/llama-7b (or host=tiny)"
        )
    folder = TINY_HOST if path == TINY else Path(path).expanduser()
    if not folder.is_dir():
        if folder.name in PREPARED["host"] and folder.parent == models_folder():
            raise InputError(
                f"host={folder.name} is not there yet ({path}). Fetch it once: mmadapter pretrained {folder.name}"
            )
        if HUB_NAME.fullmatch(path) and not folder.parent.is_dir():  # models/llama with models/ there is a slip
            return None
        raise InputError(
            f"host.path={path}: no such folder. Give a folder with config.json and safetensors files "
            "(or a model of the Hub: host.path=ORG/NAME)."
        )
    if not (folder / "config.json").is_file():
        if (folder / "params.json").is_file():
            raise InputError(
                f"host.path={path} is in Meta's layout (params.json). Convert it once: "
                f"mmadapter convert meta {path} {path}-hf, then host.path={path}-hf"
            )
        if gguf := next(iter(sorted(folder.glob("*.gguf"))), None):
            raise InputError(
                f"host.path={path} holds a GGUF file. Convert it once: mmadapter convert gguf {gguf} {path}-hf, "
                f"then host.path={path}-hf"
            )
        raise InputError(f"host.path={path}: no config.json there. Give a model folder as `save_pretrained` writes it.")
    return folder
