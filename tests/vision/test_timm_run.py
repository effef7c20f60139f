"""Runs whose encoder is a timm model: settings, dry run, training, the adapter's folder, another encoder refused."""

import hashlib
import subprocess
import sys

import pytest
import torch
from PIL import Image

import mmadapter
from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.training.run import run
from tests.config.composing import run_conf
from tests.training.tiny_run import save_inputs, tiny_overrides
from tests.vision.test_timm import CNN, VIT, folder_of

TOKENS = ["adapter.projection.kind=query_transformer", "adapter.projection.heads=2", "adapter.projection.hidden=16"]
CHOICES = {
    "stages": ("efficientnet_lite0", CNN, []),
    "tokens": ("dinov2_small_tokens", VIT, ["vision.layers=[5]", *TOKENS, "adapter.projection.blocks=1"]),
}
LOGITS = """
import hashlib, sys, torch, mmadapter
from PIL import Image
model = mmadapter.load(sys.argv[1], device="cpu")
feature = model.vision.encode_one(model.vision.preparation()(Image.new("RGB", (50, 40), "red")))
with torch.no_grad():
    logits = model.logits(torch.arange(3, 9)[None], [feature])
print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = save_inputs(tmp_path_factory.mktemp("timm"))
    for name in (VIT, CNN):
        folder_of(folder / name, name)
        folder_of(folder / f"other-{name}", name, seed=1)
    return folder


def conf_of(inputs, runs, choice, *overrides):
    group, name, own = CHOICES[choice]
    plain = [word for word in tiny_overrides(inputs, runs) if not word.startswith("vision.")]
    weights = ["vision.image_size=null", f"vision.model={name}", f"vision.pretrained={inputs / name}"]
    kept = ["evaluate=[]", "optimizer.epochs=0.5", "vision.workers=0", "~comparison"]
    return run_conf(*plain, f"vision={group}", *weights, *kept, *own, *overrides)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_trains_saves_loads_and_generates(inputs, tmp_path, choice):
    torch.set_num_threads(1)
    conf = conf_of(inputs, tmp_path, choice, "run=own")
    validate(conf)
    assert run(conf)["training"]["steps"] == 5
    name, folder, image = CHOICES[choice][1], tmp_path / "own", Image.new("RGB", (50, 40), "red")
    whole = mmadapter.load(folder, device="cpu")
    given = {"host": str(inputs / "host"), "device": "cpu"}
    alone = mmadapter.load(folder / "adapter", vision=str(inputs / name), **given)
    ids, hashes = torch.arange(3, 9)[None], []
    for model in (whole, alone):
        encoder = model.vision
        features = [encoder.encode_one(encoder.preparation()(image))]
        assert features[0].shape == encoder.feature_shape
        with torch.no_grad():
            hashes.append(model.logits(ids, features))
            assert not torch.equal(hashes[-1], model.logits(ids, [None]))
    assert torch.equal(*hashes)
    assert whole.generate("what colour is it", image, max_new_tokens=3) == alone.generate(
        "what colour is it", image, max_new_tokens=3
    )
    if choice == "stages":
        told = subprocess.run([sys.executable, "-c", LOGITS, str(folder)], capture_output=True, text=True, timeout=300)
        assert told.stdout.split()[-1:] == [hashlib.sha256(hashes[0].numpy().tobytes()).hexdigest()], told.stderr
    with pytest.raises(InputError, match="encoder_digest"):
        mmadapter.load(folder / "adapter", vision=str(inputs / f"other-{name}"), **given)
    with pytest.raises(InputError, match=r"Give vision= \(its card says: .*timm's layout"):
        mmadapter.load(folder / "adapter", **given)


def test_a_dry_run_needs_no_weights_and_a_run_says_how_to_fetch_them(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MMADAPTER_MODELS", str(tmp_path))
    plain = [word for word in tiny_overrides(inputs, tmp_path / "runs") if not word.startswith("vision.")]
    conf = run_conf(*plain, "vision=dinov2_small", "dry_run=true")
    validate(conf)
    assert run(conf)["parameters"] == 640 + 8 + (4 * 384 * 128 + 128) + (128 * 32 + 32)  # prompts, gates, projection
    conf.dry_run = False
    with pytest.raises(InputError, match=r"vision=dinov2_small is not there yet .*mmadapter pretrained dinov2_small"):
        validate(conf)


def test_a_projection_that_reads_others_is_refused_on_the_meta_device(inputs, tmp_path):
    conf = conf_of(inputs, tmp_path, "stages", "dry_run=true", "vision.tokens=all")
    validate(conf)
    with pytest.raises(InputError, match="kind=mlp reads vision.tokens=class, but vision.tokens is all"):
        run(conf)


def test_any_model_by_the_general_group(inputs, tmp_path):
    conf = run_conf("vision=timm", f"vision.model={inputs / VIT}", "vision.layers=[1,5]")
    validate(conf)
    assert conf.vision.feature_shape() == (128,)
