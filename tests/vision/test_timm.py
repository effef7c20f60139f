"""Features of timm models equal what hooks on their own blocks and stages see; weights fit exactly or are refused."""

import json
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from mmadapter.errors import InputError
from mmadapter.settings import problems_of, typed
from mmadapter.vision import ENCODERS
from mmadapter.vision.features import FeatureStore
from mmadapter.vision.settings import TimmSettings
from mmadapter.vision.timm import TimmEncoder
from tests.models import picture

VIT, CNN = "test_vit", "test_efficientnet"


def folder_of(folder, name, seed=0, config=None, **arguments):
    """A folder as timm writes it, of random weights."""
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    model = timm.create_model(name, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    save_for_hf(model, str(folder), model_args=arguments, model_config=config, safe_serialization=True)
    return str(folder)


def encoder_of(folder, **settings):
    return TimmEncoder(TimmSettings(model=folder, **settings))


def seen_by_hooks(folder, names, pixels, **arguments):
    """(the model, what its modules of these names gave)."""
    model, seen = timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval(), {}
    for name in names:
        hook = lambda _, __, output, name=name: seen.update({name: output})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        model(pixels)
    return model, [seen[name] for name in names]


def pixels(size, seed=0):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "arguments", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {"reg_tokens": 3}]
)
def test_a_transformers_blocks_give_class_tokens_or_means_and_all_tokens(tmp_path, norm, arguments):
    folder = folder_of(tmp_path / "vit", VIT, depth=5, **arguments)
    given = pixels(160)
    model, blocks = seen_by_hooks(folder, ["blocks.4", "blocks.1"], given)
    before = model.num_prefix_tokens
    assert before == {0: 1, 1: 0, 3: 4}[len(arguments) and arguments.get("reg_tokens", 1)]
    blocks = [model.norm(block) if norm else block for block in blocks]
    has_class = arguments.get("class_token", True)
    firsts = [block[:, 0] if has_class else block.mean(1) for block in blocks]
    patches = [block[:, before:] for block in blocks]
    whole = [
        torch.cat([block[:, :1], one], 1) if has_class else one for block, one in zip(blocks, patches, strict=True)
    ]

    few = encoder_of(folder, layers=[4, 1], norm=norm)
    assert torch.allclose(few.encode(given), torch.cat(firsts, -1), atol=1e-5)
    every = encoder_of(folder, layers=[4, 1], norm=norm, tokens="all")
    assert torch.allclose(every.encode(given), torch.cat(whole, -1), atol=1e-5)
    for encoder in (few, every):
        assert encoder.encode(given).shape[1:] == encoder.feature_shape == encoder.settings.feature_shape()


def test_a_convolutional_networks_stages_give_their_averages_and_positions(tmp_path):
    folder = folder_of(tmp_path / "cnn", CNN)
    names = [stage["module"] for stage in timm.create_model(CNN).feature_info]
    given = pixels(96)
    _, stages = seen_by_hooks(folder, names, given)
    assert len({stage.shape for stage in stages}) == len(stages) == 5
    every = encoder_of(folder, image_size=96)
    assert every.layers == [0, 1, 2, 3, 4]
    assert torch.allclose(every.encode(given), torch.cat([stage.mean((2, 3)) for stage in stages], 1), atol=1e-5)
    two = encoder_of(folder, layers=[3, 1], image_size=96)
    assert torch.allclose(two.encode(given), torch.cat([stages[at].mean((2, 3)) for at in (3, 1)], 1), atol=1e-5)
    last, third = (encoder_of(folder, tokens="all", image_size=96, layers=layers) for layers in (None, [2]))
    assert last.layers == [4]
    assert torch.allclose(last.encode(given), stages[4].flatten(2).mT, atol=1e-5)
    assert torch.allclose(third.encode(given), stages[2].flatten(2).mT, atol=1e-5)
    for encoder in (every, two, last, third):
        assert encoder.encode(given).shape[1:] == encoder.feature_shape == encoder.settings.feature_shape()


@pytest.mark.parametrize(
    ("settings", "layers", "shape"),
    [
        ({"model": "vit_small_patch14_dinov2", "image_size": 224}, [2, 5, 8, 11], (1536,)),
        ({"model": "vit_small_patch14_dinov2", "image_size": 224, "tokens": "all", "layers": [11]}, None, (257, 384)),
        ({"model": "vit_large_patch14_dinov2"}, [5, 11, 17, 23], (4096,)),
        ({"model": "tf_efficientnet_lite0"}, [0, 1, 2, 3, 4], (512,)),
        ({"model": "resnet50", "tokens": "all"}, [4], (49, 2048)),
        ({"model": "swin_tiny_patch4_window7_224"}, [0, 1, 2, 3], (1440,)),
    ],
)
def test_shapes_are_known_without_weights(settings, layers, shape):
    assert TimmSettings(**settings).feature_shape() == shape


@pytest.mark.parametrize("name,size", [(VIT, None), (CNN, None), (VIT, 96)])
def test_pictures_are_prepared_as_timm_does(tmp_path, name, size):
    own = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}}
    folder = folder_of(tmp_path / "m", name, config=own)
    model = timm.create_model(f"local-dir:{folder}", **({} if size is None else {"img_size": size}))
    config = resolve_data_config({"input_size": None if size is None else (3, size, size)}, model=model)
    assert config["mean"] == [0.1, 0.2, 0.3] and config["crop_pct"] == 0.8
    theirs = create_transform(**config)
    prepare = pickle.loads(pickle.dumps(encoder_of(folder, image_size=size).preparation()))
    for shape in ((160, 160), (500, 30), (7, 400), (1, 1)):
        noise = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        image = Image.fromarray(noise.numpy())
        assert torch.equal(prepare(image), theirs(image))


def test_a_weights_file_serves_the_model_that_is_named(tmp_path):
    """Also one that open_clip wrote for a timm tower, and one with another head."""
    folder = folder_of(tmp_path / "vit", VIT)
    state, given = load_file(f"{folder}/model.safetensors"), pixels(160)
    wanted = encoder_of(folder)
    torch.save({"state_dict": state}, tmp_path / "plain.pth")
    towers = {f"visual.trunk.{name}": one for name, one in state.items() if not name.startswith("head.")}
    save_file(
        towers | {"logit_scale": torch.ones(1), "visual.head.proj.weight": torch.ones(2, 2)}, tmp_path / "clip.st"
    )
    save_file(state | {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}, tmp_path / "three.safetensors")
    (tmp_path / "clip.st").rename(tmp_path / "clip.safetensors")
    for file in ("plain.pth", "clip.safetensors", "three.safetensors"):
        encoder = TimmEncoder(TimmSettings(model=VIT, pretrained=str(tmp_path / file)))
        assert torch.equal(encoder.encode(given), wanted.encode(given)), file


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("blocks.0.norm1.weight"), "Missing key.*blocks.0.norm1.weight"),
        (lambda state: state.update({"blocks.0.extra": torch.ones(2)}), "Unexpected key.*blocks.0.extra"),
        (lambda state: state.update({"norm.weight": torch.ones(5)}), "size mismatch for norm.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, named):
    folder = folder_of(tmp_path / "vit", VIT)
    state = load_file(f"{folder}/model.safetensors")
    change(state)
    save_file(state, f"{folder}/model.safetensors")
    with pytest.raises(InputError, match=f"(?s)do not fit timm's test_vit.*{named}"):
        encoder_of(folder)


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "vit", VIT)

    def refusal(**settings):
        with pytest.raises(InputError) as refused:
            TimmEncoder(TimmSettings(**settings))
        return str(refused.value)

    assert "vision.pretrained is not set. Give the weights of test_vit" in refusal(model=VIT)
    assert "timm has no such model. Near: test_vit" in refusal(
        model="test_vitt", pretrained=f"{folder}/model.safetensors"
    )
    assert "test_vit has no block 6; they count 0 to 5" in refusal(model=folder, layers=[2, 6])
    assert "config.json says test_vit" in refusal(model=CNN, pretrained=folder)
    assert "/none: no such file or folder" in refusal(model=VIT, pretrained="/none")
    assert "gives no features of 99 x 99 pixels" in refusal(model=folder, image_size=99, layers=[0])
    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path))
    missing = refusal(model="vit_small_patch14_dinov2", pretrained=str(tmp_path / "dinov2_small"))
    assert missing == (
        f"vision=dinov2_small is not there yet ({tmp_path}/dinov2_small). "
        "Fetch it once: mmadapter pretrained dinov2_small"
    )
    stages = folder_of(tmp_path / "cnn", CNN)
    assert "Set vision.layers=[4]" in refusal(model=stages, layers=[3, 4], tokens="all")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded" in refusal(model=folder)
    (tmp_path / "vit" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(model=folder)
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert "names no architecture of timm (it says model_type clip)" in refusal(model=folder)


def test_settings_say_what_is_wrong_without_torch():
    told = "\n".join(problems_of(TimmSettings(layers=[1, 1]), "vision"))
    assert "vision.model is not set" in told and "names a block or stage twice" in told
    assert "allowed are class, all" in "\n".join(problems_of(TimmSettings(model=VIT, tokens="patches"), "vision"))
    assert "vision.layers is empty" in "\n".join(problems_of(TimmSettings(model=VIT, layers=[]), "vision"))
    assert typed(ENCODERS.settings("timm"), {"encoder": "timm", "layers": [1]}) == TimmSettings(layers=[1])
    code = (
        "import sys; from mmadapter.vision import ENCODERS; s = ENCODERS.settings('timm')(model='x', layers=[1]); "
        "list(s.contradictions('vision')), list(s.missing_weights('vision')); "
        "print([name for name in ('torch', 'timm', 'PIL', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_digest_tells_weights_settings_and_preparation_apart(tmp_path):
    folder = folder_of(tmp_path / "vit", VIT)
    other = folder_of(tmp_path / "other", VIT, seed=1)
    bright = folder_of(tmp_path / "bright", VIT, config={"pretrained_cfg": {"mean": [0.500001, 0.5, 0.5]}})
    encoders = [encoder_of(folder), encoder_of(other), encoder_of(bright), encoder_of(folder, norm=False)]
    encoders += [encoder_of(folder, layers=[1]), encoder_of(folder, tokens="all"), encoder_of(folder, image_size=96)]
    assert len({encoder.digest() for encoder in encoders}) == len(encoders)
    assert encoder_of(folder).digest() == encoders[0].digest()
    assert encoders[4].identity() == {
        "layers": [1], "norm": True, "features": 64, "encoder_digest": encoders[4].digest(),
    }  # fmt: skip


@pytest.mark.parametrize("name", [VIT, CNN])
def test_features_are_kept_like_any_others(tmp_path, name):
    encoder = encoder_of(folder_of(tmp_path / "m", name))
    store = FeatureStore(encoder, tmp_path / "cache")
    path = picture(tmp_path, 1)
    store.add([path])
    assert torch.equal(store.feature(path), encoder.encode_one(encoder.preparation()(Image.open(path))))
