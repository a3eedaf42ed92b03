"""What differs in the checkpoints of AdaptSegNet's DeepLab and the many projects that copied it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from udas_fast.models.normalize import MEAN, STD

CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)  # RGB of 0 to 255, subtracted by their loaders
OTHER_HEAD = "Scale.layer5."  # the single head, of another task, in the initial weights they hand out


def rename(keys: Iterable[str]) -> dict[str, str]:
    """Their keys to those of :class:`udas_fast.models.DeepLabV2` (the backbone's without "backbone.").

    layer5 is the auxiliary head and layer6 the primary one; a single-level network has layer5 only, and it is
    the primary. Empty for the keys of any other file.
    """
    keys = list(keys)
    if not any(".conv2d_list." in key for key in keys):
        return {}
    multi_level = any(key.startswith("layer6.") for key in keys)
    heads = {"layer6": "primary", "layer5": "auxiliary"} if multi_level else {"layer5": "primary"}
    names = {}
    for key in keys:
        name = key if key.startswith(OTHER_HEAD) else key.removeprefix("Scale.")
        for theirs, ours in heads.items():
            prefix = f"{theirs}.conv2d_list."
            if name.startswith(prefix):
                name = f"{ours}.branches.{name.removeprefix(prefix)}"
        names[key] = name
    return names


def convert_input(conv1: Tensor, running_mean: Tensor) -> tuple[Tensor, Tensor]:
    """First convolution and the mean after it, from their input to :func:`udas_fast.models.normalize`'s.

    Theirs is BGR, 255·x − CAFFE_MEAN; ours RGB, (x − MEAN) / STD. The scale goes into the weights, the
    difference of the means through them into the batch norm's mean. Exact but for the padding at the border,
    which is each input's own zero.
    """
    rgb = conv1.float().flip(1)
    scale = 255 * torch.tensor(STD).view(1, 3, 1, 1)
    shift = 255 * torch.tensor(MEAN) - torch.tensor(CAFFE_MEAN)
    return rgb * scale, running_mean - rgb.sum((2, 3)) @ shift
