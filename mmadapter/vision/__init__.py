"""The frozen image encoder: from a picture's file to its features, which are kept for the whole run."""

from mmadapter.settings import Register
from mmadapter.vision.settings import OpenClipSettings, TimmSettings

ENCODERS = Register("vision encoder")
ENCODERS.add("open_clip", OpenClipSettings, "mmadapter.vision.open_clip:OpenClipEncoder")
ENCODERS.add("timm", TimmSettings, "mmadapter.vision.timm:TimmEncoder")
