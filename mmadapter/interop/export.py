"""A trained adapter and its host as one plain `transformers` folder.

    mmadapter export runs/v2_chat /models/my-chat
    mmadapter export some/adapter /models/my-v2 --host /models/llama-7b --dtype bfloat16

Bias, scale, norms and LoRA become part of the weights; nothing of this package is needed to load the folder. Prompts,
gates and the visual projection, which no `transformers` model has, are left beside it as OUT/adapter, for OUT as host.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mmadapter.errors import InputError
from mmadapter.files import new_folder
from mmadapter.hosts.load import host_identity, load_host, load_tokenizer
from mmadapter.hosts.settings import host_folder
from mmadapter.hosts.weights import weights_digest
from mmadapter.interop.command import command
from mmadapter.methods.adapter import Adapter
from mmadapter.methods.fold import fold, folded_methods
from mmadapter.methods.folder import (
    CARD,
    read_card,
    read_tensors,
    refuse_other_host,
    settings_of_card,
    write_adapter,
)
from mmadapter.methods.groups import trainable_parameters

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIG = "config.yaml"  # of a run folder


def export(
    source: Path, target: Path, host: str | None = None, dtype: str = "auto", tokenizer: str | None = None
) -> str:
    """Write the adapter of `source` (a run or adapter folder) and its host as a model folder `target`; says what it is.

    `host` and `tokenizer` name folders where those of the run's settings are not there any more; `dtype` "auto" is what
    the host's files have. Computed in float32 and rounded once. Raises InputError for bad input, for a target that
    exists, and for what `fold` refuses.
    """
    with new_folder(target) as new:
        # The host, and the adapter upon it.
        place, folder, tokens = _find(source, host, tokenizer)
        card = read_card(place)
        tensors = read_tensors(place, card)
        model = load_host(folder, "auto", "eager")  # no forward: every family knows eager
        refuse_other_host(place, card, host_identity(model, tokens, folder))
        conf = settings_of_card(place, card)
        for name in conf.readers_of_features:  # built from an image encoder, which is not needed here
            del conf.methods[name]
        adapter = Adapter.build(conf, model)
        with torch.no_grad():
            for item in trainable_parameters(adapter):
                item.parameter.copy_(tensors[item.name])
        folded = folded_methods(adapter)
        if not folded:
            raise InputError(
                f"{place} has no bias, scale, norms or LoRA, so there is nothing to put into the host's "
                "weights: the exported model would be the host itself. Use the adapter with its host."
            )
        places = Counter(_method(place) for place in {".".join(name.split(".")[:3]) for name in tensors})
        # The plain model; the methods that no plain model has are written beside it.
        fold(model, adapter, DTYPES[dtype])
        model.config.folded_adapter = card["sha256"][:16]  # the weights have changed: adapters of the host do not fit
        model.save_pretrained(new, max_shard_size="5GB")
        tokens.save_pretrained(new)
        beside = {name: tensor for name, tensor in tensors.items() if _method(name) not in folded}
        if beside:
            model.weights_digest = weights_digest(new, model)
            methods = {name: settings for name, settings in card["adapter"].items() if name not in folded}
            identity = host_identity(model, load_tokenizer(new), new)
            write_adapter(new / "adapter", beside, card | {"adapter": methods, "host": identity})
    left = f"the other methods are beside it: {target / 'adapter'}" if beside else "it is the whole model"
    told = ", ".join(f"{name} ({places[name]} places)" for name in folded)
    dtype = str(model.dtype).removeprefix("torch.")
    return f"Wrote {target} ({model.config.model_type}, {dtype}): {told} in its weights; {left}."


def _find(source: Path, host: str | None, tokenizer: str | None) -> tuple[Path, Path, Any]:
    """The adapter folder of a run or adapter folder; the host's folder and tokenizer, of the run where not given."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder. Give a run folder, or an adapter folder (with {CARD}).")
    adapter = source if (source / CARD).is_file() else source / "adapter"
    run = adapter.parent if adapter.name == "adapter" and (adapter.parent / CONFIG).is_file() else None
    if not (adapter / CARD).is_file():
        if run is None:
            raise InputError(f"{source} is neither a run folder ({CONFIG}) nor an adapter folder ({CARD}).")
        raise InputError(f"{source}: this run has no adapter/ (yet). Let it come to its end, then export it.")
    if run is not None:
        from mmadapter.config import load_run_config

        settings = load_run_config(run).host
        host, tokenizer = host or settings.path, tokenizer or settings.tokenizer
    if host is None:
        raise InputError(f"{adapter} does not say where its host lies. Give it: --host FOLDER")
    try:
        folder = host_folder(host)
        return adapter, folder, load_tokenizer(folder, tokenizer)
    except InputError as error:
        raise InputError(f"{error} Here: --host FOLDER and --tokenizer FOLDER say where they lie now.") from error


def _method(name: str) -> str:
    """The method that a tensor belongs to."""
    return name.partition(".")[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RUN_OR_ADAPTER", help="run folder, or folder with adapter.json")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to be written")
    parser.add_argument("--host", help="where the host lies (default: as the run's settings say)")
    parser.add_argument(
        "--tokenizer", help="where its tokenizer lies (default: as the run's settings say, or the host's)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; auto: as the host's files are")
    given = parser.parse_args(arguments)
    return command(lambda: export(given.source, given.target, given.host, given.dtype, given.tokenizer), given.target)


if __name__ == "__main__":
    sys.exit(main())
