"""Small CLIP models and pixels for the tests of this folder."""

import torch

from mmadapter.vision.open_clip import OpenClipEncoder
from mmadapter.vision.settings import OpenClipSettings


def pixels(seed=0):
    """(2, 3, 32, 32) of random numbers."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def encoder_on(tower, layers, **settings):
    """An encoder around a tower that is there already."""
    return OpenClipEncoder(OpenClipSettings(layers=layers, **settings), tower)


def transformers_clip(activation):
    """A random `transformers` CLIP of the same sizes as `small`."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16, "hidden_act": activation,
    }  # fmt: skip
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    torch.manual_seed(1)
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()
