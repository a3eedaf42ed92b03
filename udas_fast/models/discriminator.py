"""The output-space discriminator."""

from __future__ import annotations

from torch import Tensor, nn

from udas_fast.errors import bad


class Discriminator(nn.Module):
    """Tells source from target by the segmentation alone (AdaptSegNet, Tsai et al. 2018, section 4).

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
        """Probability or entropy maps [N, num_classes, H, W] to domain logits [N, 1, H // 32, W // 32].

        Raises InputError for another number of channels or a side below 32.
        """
        if x.dim() != 4 or x.shape[1] != self.num_classes or min(x.shape[-2:]) < 32:
            raise bad("discriminator input", list(x.shape), f"[N, {self.num_classes}, H >= 32, W >= 32]")
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = self.relu(conv(x))
        return self.classifier(x)
