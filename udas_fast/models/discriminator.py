"""Output-space discriminators: AdaptSegNet's, MRNet's of several scales, and CyCADA's of single pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import bad


def shortest_side(scales: int) -> int:
    """Return the shortest side, in pixels, of maps for :class:`Discriminator` (one scale) or the multi-scale one."""
    return 32 if scales == 1 else 8 * 2 ** (scales - 1)


class Discriminator(nn.Module):
    """Discriminator of source and target predictions (AdaptSegNet, Tsai et al. 2018, section 4).

    Five 4x4 convolutions of stride 2 and padding 1, LeakyReLU(0.2) between them and no normalisation;
    channels width x (1, 2, 4, 8), then 1. 2,781,121 parameters at 19 classes. Parameters are named as in
    AdaptSegNet's checkpoints.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(num_classes, width, 4, 2, 1)
        self.conv2 = nn.Conv2d(width, width * 2, 4, 2, 1)
        self.conv3 = nn.Conv2d(width * 2, width * 4, 4, 2, 1)
        self.conv4 = nn.Conv2d(width * 4, width * 8, 4, 2, 1)
        self.classifier = nn.Conv2d(width * 8, 1, 4, 2, 1)
        self.relu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map probabilities or entropies [N, num_classes, H, W] to domain logits [N, 1, H // 32, W // 32].

        Raises:
            InputError: another number of channels, or a side below 32.
        """
        _check(x, self.num_classes, scales=1)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = self.relu(conv(x))
        return self.classifier(x)


class MultiScaleDiscriminator(nn.Module):
    """Small discriminators for several sizes of the map, each half the one before (MRNet).

    Each: 3x3 convolutions of stride 2, 1, 2, 1, 2 with channels width, and 2 x width at the last, four
    residual blocks and a 1x1 convolution; LeakyReLU(0.2), no normalisation, weights N(0, 0.02). 1,041,699
    parameters at 19 classes and three scales (Zheng and Yang 2020). Their code pads by reflection, whose
    gradient on a GPU is not deterministic; this pads with zeros.
    """

    def __init__(self, num_classes: int, width: int = 32, scales: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scales = nn.ModuleList(_single_scale(num_classes, width) for _ in range(scales))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map [N, num_classes, H, W] to domain scores [N, 1, h, w] for each scale, at an eighth of its size.

        Raises:
            InputError: another number of channels, or a side of the smallest map below 8.
        """
        _check(x, self.num_classes, len(self.scales))
        answers = []
        for i, discriminator in enumerate(self.scales):
            if i:
                x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            answers.append(discriminator(x))
        return answers


class PixelDiscriminator(nn.Sequential):
    """Discriminator of single pixels: three 1x1 convolutions, ReLU and dropout of channels (CyCADA's code).

    Channels width, width / 2, 2: 512-256-2 and 142,082 parameters at 19 classes (Hoffman et al. 2018).
    """

    def __init__(self, num_classes: int, width: int = 512) -> None:
        super().__init__(
            nn.Conv2d(num_classes, width, 1),
            nn.Dropout2d(0.5),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, max(1, width // 2), 1),
            nn.Dropout2d(0.5),
            nn.ReLU(inplace=True),
            nn.Conv2d(max(1, width // 2), 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map scores [N, num_classes, H, W] to domain logits [N, 1, H, W].

        The network has two outputs; the cross-entropy of both equals the binary one of their difference, returned here.
        """
        source, target = super().forward(x).split(1, 1)
        return target - source


def _check(x: Tensor, num_classes: int, scales: int) -> None:
    least = shortest_side(scales)
    if x.dim() != 4 or x.shape[1] != num_classes or min(x.shape[-2:]) < least:
        raise bad("discriminator input", list(x.shape), f"[N, {num_classes}, H >= {least}, W >= {least}]")


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv3x3(channels, channels), _leaky(), _conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _single_scale(num_classes: int, width: int) -> nn.Sequential:
    plan = ((width, 2), (width, 1), (width, 2), (width, 1), (2 * width, 2))  # channels, stride
    layers: list[nn.Module] = []
    inputs = num_classes
    for channels, stride in plan:
        layers += [_conv3x3(inputs, channels, stride), _leaky()]
        inputs = channels
    return nn.Sequential(*layers, *(_Residual(inputs) for _ in range(4)), nn.Conv2d(inputs, 1, 1))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)
