"""A host of the Hub (`host.path=ORG/NAME`), through `huggingface_hub`: its cache, its login, its HF_ENDPOINT."""

from __future__ import annotations

from pathlib import Path

from mmadapter.errors import InputError

# What is fetched: never torch's pickles, and nothing of the folders below (other formats of the same weights).
DESCRIPTION = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template*"),
)
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
LEFT_OUT = ("*/*", "*.bin", "*.pt", "*.pth")


def fetched(name: str, weights: bool = True) -> Path:
    """The folder of the model `name` in the Hub's cache. New files are fetched; without a network cached ones do.

    Raises InputError for a model that is not there, is gated, has no safetensors files, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    wanted = [*DESCRIPTION, *(WEIGHTS if weights else ())]
    by_hand = f"Or fetch it elsewhere (hf download {name} --local-dir FOLDER), then host.path=FOLDER"
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=list(LEFT_OUT)))
    except GatedRepoError as error:
        raise InputError(
            f"host.path={name}: its authors let only those in who accepted their terms. Accept them on the model's "
            f"page, then log in once: hf auth login (or set HF_TOKEN). {by_hand}"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"host.path={name}: there is no such folder, and no model of that name on the Hub (or it is private: "
            "hf auth login). Give a folder, or ORG/NAME as its page spells it."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"host.path={name}: there is no such folder, and the Hub cannot be reached to fetch it (no network, or "
            f"HF_HUB_OFFLINE is set). Connect, or set HF_ENDPOINT to a mirror. {by_hand}"
        ) from error
    except Exception as error:  # of the disk, of its name's check, of the HTTP library that its version uses
        said = str(error).strip().partition("\n")[0]
        raise InputError(
            f"host.path={name}: it cannot be fetched ({type(error).__name__}: {said}). {by_hand}"
        ) from error
    finally:
        if shown:
            enable_progress_bars()
    if not (folder / "config.json").is_file():
        raise InputError(f"host.path={name}: the Hub has no config.json there. Is it a model in `transformers` layout?")
    if weights and not any(folder.glob("model*.safetensors")):
        raise InputError(
            f"host.path={name}: no safetensors files of it are in {folder}. Either the network went before they were "
            "fetched (try again), or the Hub has only torch's pickles, which are not fetched, as they can run code: "
            "take a repository with model.safetensors, or convert it yourself and give the folder."
        )
    return folder
