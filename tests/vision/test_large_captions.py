"""600,000 captions of 120,000 pictures, as many as COCO has: read, and features kept, in bounded memory.

The pictures are made and small (8 x 8, no two alike), the encoder is a mean of pixels: what is measured is ours alone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

PICTURES, CAPTIONS_EACH = 120_000, 5
BMP_HEADER = bytes.fromhex(
    "424df600000000000000360000002800000008000000080000000100180000000000c0000000c40e0000c40e00000000000000000000"
)
WORDS = ("a", "man", "woman", "dog", "cat", "riding", "on", "the", "street", "with", "red", "blue", "bus", "near")
MEASURE = """
import json, sys, time
from pathlib import Path

import torch

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.coco import read_coco_captions
from mmadapter.data.settings import CocoSettings
from mmadapter.vision.features import FeatureStore
from tests.vision.test_encoder import GridEncoder, GridSettings

def own_bytes():  # without pages of mapped files, which the system takes back when it needs them
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])

torch.set_num_threads(1)
began_at = time.process_time()
root, cache, began = Path(sys.argv[1]), Path(sys.argv[2]), own_bytes()
samples = read_coco_captions(CocoSettings(root=str(root), split="train"), Purpose("captions", training=True))
read_seconds = time.process_time() - began_at
read, paths = own_bytes(), list(dict.fromkeys(sample.image for sample in samples))
encoder = GridEncoder(GridSettings(encoder="grid", cells=16))
counts, encode = [], encoder.encode
encoder.encode = lambda pixels: counts.append(len(pixels)) or encode(pixels)
store = FeatureStore(encoder, cache)
store.add(paths)
total = sum(float(store.feature(path).sum()) for path in paths)
print(json.dumps({
    "samples": len(samples), "pictures": len(paths), "encoded": sum(counts), "total": total,
    "read_seconds": read_seconds, "store_seconds": time.process_time() - began_at - read_seconds,
    "read_bytes": read - began, "store_bytes": own_bytes() - read,
}))
"""


def save_coco(root: Path) -> None:
    """COCO's official layout: train2014/ and annotations/captions_train2014.json."""
    drawn, images, annotations = random.Random(0), [], []
    (root / "train2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number in range(PICTURES):
        name = f"COCO_train2014_{number:012d}.jpg"
        (root / "train2014" / name).write_bytes(BMP_HEADER + drawn.randbytes(192))
        images.append({"id": number, "file_name": name, "width": 640, "height": 480, "license": 1})
        for one in range(CAPTIONS_EACH):
            text = " ".join(drawn.choices(WORDS, k=11)).capitalize() + "."
            annotations.append({"image_id": number, "id": CAPTIONS_EACH * number + one, "caption": text})
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (root / "annotations" / "captions_train2014.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_600_000_captions_of_120_000_pictures_take_bounded_memory_and_are_encoded_once(tmp_path):
    save_coco(tmp_path / "coco")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "coco"), str(tmp_path / "cache")]
    first, again = (json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(2))
    print(first, again)
    for one in (first, again):
        assert (one["samples"], one["pictures"]) == (PICTURES * CAPTIONS_EACH, PICTURES)
        assert one["read_bytes"] < 1200 * one["samples"]
        assert one["store_bytes"] < 2500 * one["pictures"], "an index and a pack that is written; features are mapped"
    assert first["encoded"] == PICTURES + 8 and again["encoded"] == 0 and again["total"] == first["total"]
    files = [file.stat().st_size for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert sum(files) > PICTURES * 16 * 16 * 3 * 4 and len(files) < 20, "more than is in memory, in few files"
