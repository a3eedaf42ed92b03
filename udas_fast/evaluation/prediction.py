"""Labels and confidence of one image."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.data.geometry import resize
from udas_fast.data.regions import Regions
from udas_fast.errors import bad
from udas_fast.evaluation.scoring import device_of, evaluating
from udas_fast.evaluation.tiles import Slices, tiled_logits
from udas_fast.models import SegmentationOutput, normalization_of, normalize, to_output


def predict(
    model: nn.Module,
    image: Tensor | Regions,
    size: tuple[int, int],
    out_size: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (label uint8, confidence float32), both ``out_size`` (H, W), on the model's device.

    ``out_size``: None is the image's own size. The other arguments and errors are those of :func:`image_logits`.
    """
    logits, own_size = image_logits(model, image, size, tile)
    return label_and_confidence(logits, own_size if out_size is None else out_size)


@torch.no_grad()
def image_logits(
    model: nn.Module, image: Tensor | Regions, size: tuple[int, int], tile: tuple[int, int] | None = None
) -> tuple[SegmentationOutput, tuple[int, int]]:
    """Return the model's output for one image, as small as the network gives it, and the image's own (H, W).

    The model runs in evaluation mode, and its own mode is restored.

    Args:
        model: a segmentation model (:func:`udas_fast.models.to_output`).
        image: uint8 RGB [3, H, W], or a file of which regions are read, with ``tile`` and ``size`` its own size.
        size: (H, W) that the image is resized to for the network, as :func:`udas_fast.evaluation.evaluate_dataset`
            does, so that both use the same pixels.
        tile: (H, W) of the parts of the resized image that go through the network one by one
            (:mod:`udas_fast.evaluation.tiles`); None: all of it at once.

    Raises:
        InputError: an image of another dtype or shape, or tiles that are too small for the network.
    """
    device = device_of(model)
    whole, own_size = _network_input(image, size)

    def forward(part: Tensor) -> SegmentationOutput:
        return to_output(model(normalize(part.to(device), normalization_of(model))))

    with evaluating(model):
        if tile is None:
            return forward(whole[...]), own_size
        return tiled_logits(forward, whole, tile, multiple=getattr(model, "multiple", 1)), own_size


def label_and_confidence(
    output: SegmentationOutput, size: tuple[int, int], temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the arg-max of the primary head, uint8, and its softmax(logits / T), float32, both ``size`` (H, W).

    Nothing of C channels exists at ``size``.
    """
    result = ops.pseudo_label(
        [output.primary],
        size,
        threshold=0.0,
        temperature=temperature,
        align_corners=output.align_corners,
    )
    return result.label[0], result.confidence[0]


def _network_input(image: Tensor | Regions, size: tuple[int, int]) -> tuple[Tensor | Slices, tuple[int, int]]:
    """Return the image as the network sees it, uint8 [1, 3, H, W] or what is sliced like it, and its own (H, W)."""
    if isinstance(image, Regions):
        own_size = image.height, image.width
        if size != own_size:
            raise bad("size", size, f"{own_size}, that of the file whose regions are read")
        return Slices(image), own_size
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise bad("image", f"{image.dtype} {list(image.shape)}", "torch.uint8 [3, H, W]")
    pixels = resize(image.permute(1, 2, 0).cpu().numpy(), size, Image.Resampling.BILINEAR)
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0), (image.shape[1], image.shape[2])
