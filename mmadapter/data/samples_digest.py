"""What samples are, in 16 hexadecimal digits: a run that goes on learns from the data that it began with."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

from mmadapter.data.tokens import Encoded


def samples_digest(encoded: Iterable[Encoded]) -> str:
    """Changes with the order of the samples, with every token, every answer's place and the names of the pictures.

    Of a picture neither place nor content counts: the folder may move, and files of any size are not read again.
    """
    found = hashlib.sha256()
    for item in encoded:
        spans = array("i", [place for span in item.spans for place in span])
        image = b"" if item.sample.image is None else item.sample.image.name.encode("utf-8", "surrogateescape")
        found.update(array("i", [len(item.ids), len(spans), len(image)]).tobytes())
        found.update(item.ids)
        found.update(spans)
        found.update(image)
    return found.hexdigest()[:16]
