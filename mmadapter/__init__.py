"""Parameter-efficient multimodal instruction models: LLaMA-Adapter V1 and V2 on `transformers` hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mmadapter.model import AdaptedModel

__version__ = "0.2.0"


def load(
    run_or_adapter_folder: str | Path,
    host: str | Path | None = None,
    vision: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> AdaptedModel:
    """A trained model that generates, scores and chats: see `mmadapter.model.AdaptedModel`.

    `run_or_adapter_folder`: a run folder (runs/NAME), which says where its host and CLIP weights were; or an adapter
    folder (with adapter.json), for which `host` must be given, and `vision` where the adapter sees pictures. `host`: a
    model folder in `transformers` layout, or "tiny". `vision`: the CLIP weights (a file, a `transformers` folder, an
    open_clip tag, which downloads), a folder in open_clip's layout, or "tiny". `device`: "cpu", "cuda", "cuda:1"; None:
    the GPU where there is one. `dtype` of the frozen host: "float32" or "bfloat16"; None: as the run says, for an
    adapter folder bfloat16 on a GPU and float32 on a CPU.

    Torch is imported at the first call, not with the package; global random states stay as they were. Raises
    `mmadapter.errors.InputError` for a folder that is neither or is damaged, and for a host or an encoder that are not
    the adapter's own.
    """
    from pathlib import Path

    from mmadapter.runs.model import open_folder

    places = [None if place is None else str(Path(place).expanduser()) for place in (host, vision)]
    kind = None if dtype is None else str(dtype).removeprefix("torch.")
    where = None if device is None else str(device)
    return open_folder(Path(run_or_adapter_folder).expanduser(), places[0], places[1], where, kind)
