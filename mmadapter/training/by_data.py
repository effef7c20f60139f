"""What the data decide before a run has a folder: whether it has pictures (vision.enabled=null, vision=auto)."""

from __future__ import annotations

from copy import deepcopy

from mmadapter.config import RunConf, remove_pictures, validate
from mmadapter.data.readers import MissingData
from mmadapter.data.training import Remarks, read_samples
from mmadapter.errors import InputError
from mmadapter.hosts.settings import TINY


def decided_by_data(conf: RunConf) -> tuple[RunConf, list[str]]:
    """The settings with `vision.enabled` decided where it was null, and the lines to print about that and the data.

    Where the data have no pictures, visual methods are left out, and so is a comparison that only leaves out pictures.
    Raises InputError for pictures without an encoder that fits the host, or that the adapter does not read.
    """
    if conf.vision.enabled is not None:
        return conf, []
    conf, remarks = deepcopy(conf), Remarks()
    try:
        with remarks:
            read = read_samples(conf.data, images=True, seed=conf.seed)
    except MissingData:
        if not conf.dry_run or conf.data.path is not None:  # a dry run needs no data, but no wrong path either
            raise
        read = None
    listed = [one for samples in (read.training if read else {}).values() for one in samples]
    pictured = sum(one.image is not None for one in listed)
    if not pictured:
        remove_pictures(conf)
        same = [name for name, one in conf.comparison.items() if one.train and not one.images and one.sources is None]
        for name in same:
            del conf.comparison[name]
        line = f"pictures: none in {len(listed):,} samples, so this is trained on text alone"
        return conf, [*remarks.messages, *([line] if read is not None else [])]

    to_leave_out = " ".join(
        f"data.sources.{name}.images=false" for name, one in conf.data.sources.items() if one.images
    )
    encoder = conf.vision
    model = getattr(encoder, "model", None)
    if not conf.adapter.visual:
        raise InputError(
            f"{pictured:,} of {len(listed):,} samples have a picture, and no method of this adapter reads pictures. "
            f"Choose one that does, adapter=v1_visual or adapter=v2; or train on the text alone: {to_leave_out}"
        )
    if model == TINY and conf.host.path != TINY:
        raise InputError(
            f"{pictured:,} of {len(listed):,} samples have a picture, and no image encoder is chosen for this host "
            "(the shipped one knows coloured shapes only). Add one of these:\n"
            "  vision=dinov2_small   (fetch it once: mmadapter pretrained dinov2_small)\n"
            "  vision=clip_vit_l14 vision.pretrained=openai   (downloads)\n"
            f"  {to_leave_out}   (text alone)"
        )
    encoder.enabled = True
    validate(conf)
    line = f"pictures: {pictured:,} of {len(listed):,} samples have one; image encoder {model or encoder.encoder}"
    return conf, [*remarks.messages, line]
