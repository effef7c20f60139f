"""Picture files to upright RGB pictures, or an InputError that says why not; no global of PIL is changed.

A picture is a file on the disk, or a place in a tar archive (`packed_images`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmadapter.errors import InputError
from mmadapter.vision.packed_images import packed_content

MAX_PIXELS = 100_000_000
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
log = logging.getLogger(__name__)


def image_content(path: Path) -> bytes:
    """The bytes of a picture file. Raises InputError where it is missing or cannot be read."""
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the image file cannot be read: {error.strerror}.") from error
    content = packed_content(path)
    if content is None:
        raise InputError(f"{path}: there is no such image file. Check the data root, or set missing_image=skip.")
    return content


def content_digest(content: bytes) -> str:
    """The SHA-256 of a picture file's bytes, in hexadecimal digits: what its features are kept by."""
    return hashlib.sha256(content).hexdigest()


def read_image(path: Path) -> Image.Image:
    """The picture of a file as 8-bit RGB: see `decoded`."""
    return decoded(image_content(Path(path)), path)


def decoded(content: bytes, path: Path) -> Image.Image:
    """The picture in a file's bytes as 8-bit RGB, upright, its first frame if animated, transparency over white.

    The kind of file is judged by its content. Raises InputError naming the file where it is no picture, cut off or
    damaged, or of more than 100 million pixels (refused from the header, before memory is used).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # between PIL's limit and ours
            warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF", UserWarning)
            with Image.open(io.BytesIO(content)) as opened:
                _check_size(path, opened.size)
                # Decoded before its EXIF is read: reading EXIF of a PNG decodes it too and would hide the error.
                opened.load()
                return _to_rgb(path, _upright(path, opened))
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # so large that PIL itself refused it
        claimed = re.search(r"\d+", str(error))
        pixels = f"{int(claimed[0]):,} pixels" if claimed else "too many pixels"
        raise InputError(_too_large(f"{path}: its header claims {pixels}")) from error
    except Exception as error:  # PIL raises a dozen kinds of errors on damaged files; all mean the same to the user
        if not content:
            reason = "the image file is empty."
        elif isinstance(error, UnidentifiedImageError):
            reason = "this is no picture in any format that PIL reads."
        else:
            reason = f"the image file is cut off or damaged ({type(error).__name__}: {error})."
        raise InputError(f"{path}: {reason} Replace the file or take the item out.") from error


def upright_rgb(image: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture in memory as `read_image` would have read it from its file; `name` is for the errors."""
    _check_size(name, image.size)
    try:
        image.load()
    except Exception as error:  # opened from a file that is damaged, or closed by now
        raise InputError(f"{name}: its pixels cannot be read ({type(error).__name__}: {error}).") from error
    return _to_rgb(name, _upright(name, image))


def _check_size(path: Path | str, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{path}: the picture has {width} x {height} pixels, nothing to see. Replace the file.")
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(f"{path}: its header claims {width} x {height} pixels"))


def _too_large(what: str) -> str:
    return f"{what}; at most {MAX_PIXELS:,} are read (a decompression bomb?). Replace the file by a smaller picture."


def _upright(path: Path | str, image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception as error:  # damaged EXIF says nothing about the pixels, which are decoded by now
        log.warning("%s: its EXIF data is damaged and was ignored (%s: %s)", path, type(error).__name__, error)
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _to_rgb(path: Path | str, image: Image.Image) -> Image.Image:
    """A new picture that carries pixels only: a kept orientation would turn it again when it is read once more."""
    if image.mode.startswith("I;16") or image.mode == "I":
        converted = _grey_16_bit(path, image).convert("RGB")
    elif image.mode == "F":
        raise InputError(f"{path}: its pixels are floating-point numbers of unknown range. Save it with 8 or 16 bits.")
    elif image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        converted = Image.alpha_composite(white, coloured).convert("RGB")
    else:
        converted = image.convert("RGB")
    converted.info.clear()
    return converted


def _grey_16_bit(path: Path | str, image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bit; a plain conversion would clip everything above 255 to white."""
    wide = image.convert("I")
    low, high = (int(value) for value in wide.getextrema())  # type: ignore[arg-type]
    if low < 0 or high > 65535:
        raise InputError(f"{path}: its grey values are {low} to {high}, allowed 0 to 65535. Save it with 16 bits.")
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")
