"""conf/vision: the frozen CLIP image encoder (V1 paper, section 3.3)."""

from dataclasses import dataclass

from mmadapter.settings import choice, input_path, listing, number, plain


@dataclass
class VisionConf:
    enabled: bool = True  # false = text only: no encoder is loaded, no visual role is there
    model: str | None = None  # open_clip model name (ViT-L-14-quickgelu), or "tiny" = the shipped one
    pretrained: str | None = input_path()  # weights file, transformers folder, or open_clip tag (downloads)
    layers: list[int] = listing()  # blocks, from 0, whose global features are joined; paper: several, not stated which
    project_scales: bool = True  # each scale through CLIP's last norm and projection (1024 -> 768); false = raw
    tokens: str = choice("class", "all")  # class = global features (paper); all = class and patch tokens (released)
    quick_gelu: bool | None = None  # null = as the weights need it (OpenAI's: true); a contradiction is an error
    channel_order: str = choice("rgb", "bgr")  # bgr only for released checkpoints that were trained so
    cache: str | None = plain(None, influence=False)  # folder for frozen features; null = in memory only
    batch_size: int = number(64, at_least=1, influence=False)  # pictures encoded at a time
    workers: int = number(0, at_least=0, influence=False)  # processes that read pictures ahead; 0 = the run itself
