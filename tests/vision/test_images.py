"""Pictures of every awkward kind become upright RGB, or one clear error; none becomes silently black."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from mmadapter.errors import InputError
from mmadapter.vision.images import content_digest, image_content, read_image, upright_rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(size=(40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture


def saved(folder: Path, picture: Image.Image, name: str = "image.png", **settings) -> Path:
    picture.save(folder / name, **settings)
    return folder / name


def near(pixel, wanted, by: int = 12) -> bool:
    return len(pixel) == 3 and all(abs(one - other) <= by for one, other in zip(pixel, wanted, strict=True))


@pytest.fixture(autouse=True)
def _pil_globals_stay():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    yield
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_plain_pictures_in_usual_formats(tmp_path, kind):
    picture = read_image(saved(tmp_path, two_halves(), "image", format=kind))
    assert (picture.mode, picture.size) == ("RGB", (40, 20))
    assert near(picture.getpixel((5, 10)), RED) and near(picture.getpixel((35, 10)), BLUE)


def test_the_content_decides_not_the_extension(tmp_path):
    assert near(read_image(saved(tmp_path, two_halves(), "image.png", format="JPEG")).getpixel((5, 5)), RED)


def test_grey_and_bilevel(tmp_path):
    assert read_image(saved(tmp_path, Image.new("L", (4, 4), 100))).getpixel((0, 0)) == (100, 100, 100)
    assert read_image(saved(tmp_path, Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("wide", "narrow"), [(0, 0), (256, 1), (32768, 128), (40000, 156), (65535, 255)])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, wide, narrow):
    path = saved(tmp_path, Image.new("I;16", (4, 4), wide))
    assert read_image(path).getpixel((1, 1)) == (narrow,) * 3


def test_32_bit_grey_beyond_16_bits_and_floats_are_refused(tmp_path):
    with pytest.raises(InputError, match="grey values are 0 to 100000, allowed 0 to 65535"):
        wide = Image.new("I", (2, 1))
        wide.putpixel((1, 0), 100_000)
        read_image(saved(tmp_path, wide, "a.tiff"))
    with pytest.raises(InputError, match="floating-point"):
        read_image(saved(tmp_path, Image.new("F", (2, 2), 0.5), "b.tiff"))


def test_cmyk_becomes_the_colours_one_sees(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "image.jpg", quality=100)
    assert near(read_image(path).getpixel((8, 8)), RED)


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 255)), (0, 0, 0)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
    ],
)
def test_transparency_lies_over_white(tmp_path, picture, wanted):
    assert near(read_image(saved(tmp_path, picture)).getpixel((2, 2)), wanted, 1)


def test_palettes_with_and_without_transparency(tmp_path):
    palette = two_halves().quantize(4)
    assert near(read_image(saved(tmp_path, palette)).getpixel((5, 5)), RED)
    left = palette.getpixel((5, 5))
    see_through = read_image(saved(tmp_path, palette, transparency=left))
    assert see_through.getpixel((5, 5)) == (255, 255, 255) and near(see_through.getpixel((35, 5)), BLUE)


def test_a_colour_key_is_transparency_too(tmp_path):
    picture = read_image(saved(tmp_path, two_halves(), transparency=RED))
    assert picture.getpixel((5, 5)) == (255, 255, 255) and picture.getpixel((35, 5)) == BLUE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, kind):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8), RED).save(path, format=kind, save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])
    assert near(read_image(path).getpixel((4, 4)), RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, kind, orientation):
    turned_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = two_halves()
    upright.paste((0, 255, 0), (0, 0, 8, 4))
    stored = upright.transpose(turned_back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_image(saved(tmp_path, stored, "image", format=kind, exif=exif, quality=100))
    assert picture.size == (40, 20)
    assert near(picture.getpixel((3, 1)), (0, 255, 0), 60)
    assert near(picture.getpixel((3, 15)), RED, 60) and near(picture.getpixel((35, 15)), BLUE, 60)


@pytest.mark.filterwarnings("error")
def test_a_picture_that_stands_upright_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_image(saved(tmp_path, Image.new("RGB", (8, 4)), "image.jpg", exif=exif))
    assert picture.size == upright_rgb(picture).size == (4, 8)


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    path = saved(tmp_path, two_halves(), "image.jpg", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert near(read_image(path).getpixel((5, 5)), RED)


def test_junk_between_markers_is_no_damage(tmp_path):
    content = saved(tmp_path, two_halves(), "image.jpg").read_bytes()
    (tmp_path / "junk.jpg").write_bytes(content[:2] + b"\xff" * 3 + content[2:])
    assert near(read_image(tmp_path / "junk.jpg").getpixel((5, 5)), RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_truncated_picture_is_an_error(tmp_path, kind, share):
    noise = Image.effect_noise((120, 120), 90).convert("RGB")
    content = saved(tmp_path, noise, "whole", format=kind).read_bytes()
    path = tmp_path / "cut.png"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.png: (the image file is cut off or damaged|this is no picture)"):
        read_image(path)


def test_a_broken_stream_is_an_error_and_never_a_part_black_picture(tmp_path):
    noise = Image.effect_noise((120, 120), 90).convert("RGB")
    content = bytearray(saved(tmp_path, noise).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match="cut off or damaged"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"hello, this is a text", "no picture"), (b"\x89PNG\r\n\x1a\n", "damaged|no picture")],
)
def test_what_is_no_picture_is_said_to_be_none(tmp_path, content, reason):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_image(tmp_path / "image.png")
    assert str(tmp_path / "image.png") in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: there is no such image file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="no such image file"):
        read_image(tmp_path)


MEMORY_OF_A_REFUSAL = """
import resource, sys
from pathlib import Path
from mmadapter.vision.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(Path(sys.argv[1]))
except Exception:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(65535, 65535), (11000, 10000)])
@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_without_using_memory(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(InputError, match=r"bomb\.png.*header claims [1-9].*pixels; at most 100,000,000") as refused:
        read_image(tmp_path / "bomb.png")
    assert str(refused.value).count("Replace the file") == 1
    command = [sys.executable, "-W", "ignore", "-c", MEMORY_OF_A_REFUSAL, tmp_path / "bomb.png"]
    grown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert int(grown.stdout) < 20_000, grown.stderr


def test_a_picture_of_no_width_is_refused(tmp_path):
    gif = io.BytesIO()
    Image.new("P", (1, 1)).save(gif, "GIF")
    content = bytearray(gif.getvalue())
    content[6:8] = b"\0\0"
    place = content.index(b",\0\0\0\0") + 5
    content[place : place + 2] = b"\0\0"
    (tmp_path / "zero.gif").write_bytes(content)
    with pytest.raises(InputError, match="zero.gif"):
        read_image(tmp_path / "zero.gif")


def test_extreme_shapes_are_read(tmp_path):
    assert read_image(saved(tmp_path, Image.new("RGB", (980, 3)))).size == (980, 3)


def test_the_digest_is_of_the_content(tmp_path):
    one, other = saved(tmp_path, two_halves(), "a.png"), saved(tmp_path, two_halves(), "b.png")
    different = saved(tmp_path, two_halves((20, 20)), "c.png")
    assert (
        content_digest(image_content(one))
        == content_digest(image_content(other))
        != content_digest(image_content(different))
    )
    assert len(content_digest(image_content(one))) == 64
    with pytest.raises(InputError, match="gone"):
        content_digest(image_content(tmp_path / "gone.png"))
