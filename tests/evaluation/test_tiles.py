"""Tiles: logits of the whole image for a receptive field of at most a quarter of the overlap."""

import itertools

import pytest
import torch
from torch import nn

from udas_fast.errors import InputError
from udas_fast.evaluation import predict
from udas_fast.evaluation.tiles import _spans, _weights, tiled_logits
from udas_fast.models import ModelConfig, SegmentationOutput, build_model
from udas_fast.models.backbones.base import fit_to_multiple


def _image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


class Near(nn.Module):
    """Receptive field of 9 pixels around each logit, stride 8, one row and column more than an eighth as in ResNets."""

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.align_corners = align_corners
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 7, 2, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(6, 5, 3, 2, 1)
        )

    def forward(self, x: torch.Tensor) -> SegmentationOutput:
        return SegmentationOutput(self.layers(x.float() / 255), align_corners=self.align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(301, 420), (160, 333), (500, 161), (100, 417)])
@torch.no_grad()
def test_a_small_receptive_field_gives_the_same_logits(size: tuple[int, int], align_corners: bool) -> None:
    # An overlap of 40 pixels has 6 logits; 1.5 of them, 12 pixels, are the quarter of weight 0.
    model, image = Near(align_corners), _image(*size)
    tiled, whole = tiled_logits(model, image, (160, 168)), model(image)
    assert tiled.align_corners is align_corners
    # Convolutions of another size may sum in another order.
    torch.testing.assert_close(tiled.primary, whole.primary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["deeplabv2", "deeplabv3plus", "fcn"])
@pytest.mark.parametrize("output_stride", [4, 8])
@torch.no_grad()
def test_the_logits_of_every_network_have_the_whole_images_shape(name: str, output_stride: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig(head=name, backbone="resnet18", width=1, output_stride=output_stride)
    model = build_model(config, 3).eval()
    for size in ((131, 97), (64, 150), (65, 66)):
        image = _image(*size)
        tiled = tiled_logits(lambda part: model(part.float() / 255), image, (64, 70))
        assert tiled.primary.shape == model(image.float()).primary.shape


@pytest.mark.parametrize("form", ["deeplab", "pyramid"])
@torch.no_grad()
def test_tiles_begin_on_the_grid_of_the_coarsest_map(form: str) -> None:
    """Maps of stride 32 that are upsampled to 4 in the network: a receptive field without surroundings."""
    scale = {"deeplab": 1, "pyramid": 8}[form]

    def forward(part: torch.Tensor) -> SegmentationOutput:
        coarse = nn.functional.max_pool2d(part.float(), 32, ceil_mode=True)
        return SegmentationOutput(nn.functional.interpolate(coarse, scale_factor=scale))

    image = _image(300, 230)
    tiled = tiled_logits(forward, image, (128, 96))
    torch.testing.assert_close(tiled.primary, forward(image).primary, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(140, 200), (141, 203), (30, 150)])
@torch.no_grad()
def test_tiles_of_patches_give_logits_at_the_strides_of_a_vision_transformer(size: tuple[int, int]) -> None:
    """Patches of 14 pixels and 8 logits for each: 1.75 pixels a logit."""

    def forward(part: torch.Tensor) -> SegmentationOutput:
        part = fit_to_multiple(part.float(), 14)
        patches = nn.functional.avg_pool2d(part, 14).round()
        return SegmentationOutput(nn.functional.interpolate(patches, scale_factor=8))

    image = _image(*size)
    tiled, whole = tiled_logits(forward, image, (66, 90), multiple=14).primary, forward(image).primary
    assert tiled.shape == whole.shape
    # Resized pixels are rounded before they are cut.
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1.01)


@pytest.mark.parametrize("backbone", ["dinov2_s", "dinov3_s"])
def test_a_vision_transformer_predicts_by_tiles(backbone: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone=backbone, width=24), 5).eval()
    label, confidence = predict(model, _image(90, 150)[0], (90, 150), tile=(64, 70))
    assert label.shape == confidence.shape == (90, 150)
    assert confidence.isfinite().all()


def test_an_image_in_one_tile_is_not_cut_to_the_bit(model) -> None:
    image = _image(70, 90)[0]
    whole = predict(model, image, (64, 80))
    for tile in ((64, 80), (1000, 80), (5000, 5000)):
        tiled = predict(model, image, (64, 80), tile=tile)
        assert all(torch.equal(one, other) for one, other in zip(tiled, whole, strict=True))


def test_equal_surroundings_leave_no_seam() -> None:
    constant = torch.full((1, 3, 300, 300), 77, dtype=torch.uint8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8))  # no padding: every logit is the same
    tiled = tiled_logits(lambda part: SegmentationOutput(model(part.float())), constant, (100, 128)).primary
    # weights that sum to 1 within float32's rounding
    torch.testing.assert_close(tiled, tiled[..., :1, :1].expand_as(tiled), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "tile"), [(64, 64), (65, 64), (97, 64), (500, 64), (1000, 333), (129, 128)]
)
@pytest.mark.parametrize("stride", [1, 4, 8, 32])
def test_tiles_cover_an_axis_evenly(length: int, tile: int, stride: int) -> None:
    spans = _spans(length, tile, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    for (start, end), (after, _) in itertools.pairwise(spans):
        assert start < after
        assert after % stride == 0
        assert end - after >= tile // 4 - stride or end == length
    assert all(end - start <= tile for start, end in spans)
    counts = [(start // stride, -(-(end - start) // stride)) for start, end in spans]
    weights = _weights(counts)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(weights.shape[1]))


def test_impossible_tiles_are_refused() -> None:
    image = _image(200, 200)
    with pytest.raises(InputError, match="tile: found 63x100, expected 64x64 or more"):
        tiled_logits(Near(), image, (63, 100))
    with pytest.raises(InputError, match="network for tiles: found 0 logits fewer for 32 pixels"):
        tiled_logits(lambda part: SegmentationOutput(torch.zeros(1, 2, 7, 7)), image, (64, 64))
    with pytest.raises(InputError, match="tile: found 70x100, expected 80x80 or more"):
        tiled_logits(Near(), image, (70, 100), multiple=40)
