"""conf/vision: the frozen CLIP image encoder and the visual projection (V1 paper, section 3.3)."""

from dataclasses import dataclass, field

from mmadapter.config.fields import choice, listing, number


@dataclass
class VisionConf:
    enabled: bool = True  # false = text only: no encoder is loaded, no projection is trained
    model: str | None = None  # open_clip model name (ViT-L-14-quickgelu), or "tiny" = the shipped one
    pretrained: str | None = field(default=None, metadata={"path_name": True})  # open_clip tag, weights file, or transformers folder
    layers: list[int] = listing()  # blocks whose global features are concatenated, numbered from 0; paper: several, which is not stated
    project_scales: bool = True  # each scale through CLIP's own last norm and projection (1024 -> 768); false = raw width
    hidden: int = number(64, at_least=1)  # width of the projection's bottleneck; 4608 -> 64 -> 4096 fits the paper's 0.6M
    quick_gelu: bool | None = None  # null = as the weights need it (OpenAI's: true); a contradiction is an error
    channel_order: str = choice("rgb", "bgr")  # bgr only for released checkpoints that were trained so
    cache: str | None = field(default=None, metadata={"without_influence": True})  # folder for frozen features on disk; null = memory only
    batch_size: int = field(default=64, metadata={"at_least": 1, "without_influence": True})  # pictures encoded at a time
