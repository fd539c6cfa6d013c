"""C3D with batch norm (Tran et al. 2015, arXiv:1412.0767), its fully connected layers replaced by an average."""

from torch import nn

from models.stages import Stages, scaled

# convolutions of each stage, and the pooling that ends it
STAGES: tuple[tuple[tuple[int, ...], tuple[int, int, int] | None], ...] = (
    ((64,), (1, 2, 2)),
    ((128,), (2, 2, 2)),
    ((256, 256), (2, 2, 2)),
    ((512, 512), (2, 2, 2)),
    ((512, 512), None),
)


class C3D(Stages):
    """Eight 3×3×3 convolutions with bias, each with batch norm and ReLU, in five stages; max-pooling after four.

    (B, C, 16, 112, 112) → conv5 (B, 512, 2, 7, 7); time is pooled 8-fold: 8 frames and 16² pixels are the least.
    With a 4-way linear head 27,663,492 parameters. width multiplies every channel count.
    """

    def __init__(self, width: float = 1.0, channels: int = 3) -> None:
        stages, dims = [], []
        for convolutions, pool in STAGES:
            layers: list[nn.Module] = []
            for outputs in (scaled(full, width) for full in convolutions):
                layers += [
                    nn.Conv3d(channels, outputs, 3, padding=1),
                    nn.BatchNorm3d(outputs),
                    nn.ReLU(inplace=True),
                ]
                channels = outputs
            layers += [nn.MaxPool3d(pool, pool)] if pool else []
            stages.append(nn.Sequential(*layers))
            dims.append(channels)
        super().__init__(stages, dims)
