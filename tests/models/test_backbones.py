"""The video backbones: published parameter counts, feature shapes, and arithmetic against torchvision and by hand."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

import models
from models.dpc import ResNet2d3d
from models.networks import R3D, FactoredConv, MaxPool, SelfGating, Stages

# With a 4-way linear head, from METHODS; torchvision's are its documented counts, which have a 400-way head; DPC's
# encoders are counted without one.
COUNTS = {
    "r2plus1d": (4, 14_367_355),
    "r3d": (4, 14_363_844),
    "c3d": (4, 27_663_492),
    "s3dg": (4, 9_129_172),
    "r3d_18": (400, 33_371_472),
    "r2plus1d_18": (400, 31_505_325),
    "mc3_18": (400, 11_695_440),
    "s3d": (400, 8_320_048),
    "resnet2d3d_18": (0, 14_057_536),
    "resnet2d3d_34": (0, 32_422_208),
}
# (stage 4, stage 5) maps: channels, time, height, width
MAPS = {
    ("r2plus1d", 16, 112): ((256, 4, 14, 14), (512, 2, 7, 7)),
    ("r3d", 16, 112): ((256, 4, 14, 14), (512, 2, 7, 7)),
    ("c3d", 16, 112): ((512, 2, 7, 7), (512, 2, 7, 7)),
    ("s3dg", 64, 224): ((832, 8, 7, 7), (1024, 8, 7, 7)),
    ("s3dg", 16, 224): ((832, 2, 7, 7), (1024, 2, 7, 7)),
    ("r3d_18", 16, 112): ((256, 4, 14, 14), (512, 2, 7, 7)),
    ("r2plus1d_18", 16, 112): ((256, 4, 14, 14), (512, 2, 7, 7)),
    ("mc3_18", 16, 112): ((256, 16, 14, 14), (512, 16, 7, 7)),
    ("s3d", 64, 224): ((832, 8, 7, 7), (1024, 8, 7, 7)),
    ("resnet2d3d_18", 5, 128): ((256, 3, 8, 8), (256, 2, 4, 4)),
    ("resnet2d3d_34", 16, 112): ((256, 8, 7, 7), (256, 4, 4, 4)),
    ("resnet2d3d_50", 16, 224): ((1024, 8, 14, 14), (1024, 4, 7, 7)),
}


def outline(name: str, width: float = 1.0, channels: int = 3) -> Stages:
    """A network without memory for its weights: its shapes are real."""
    with torch.device("meta"):
        return models.BACKBONES[name].make(width, channels)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    classes, published = COUNTS[name]
    network = outline(name)
    head = network.dim * classes + classes
    assert sum(p.numel() for p in network.parameters()) + head == published


@pytest.mark.parametrize(("name", "frames", "size"), MAPS)
def test_p4_and_p5_are_the_means_of_maps_of_these_shapes(name: str, frames: int, size: int) -> None:
    network, x = outline(name), torch.empty(2, 3, frames, size, size, device="meta")
    maps = network.maps(x, (4, 5))
    assert tuple(tuple(m.shape[1:]) for m in maps.values()) == MAPS[name, frames, size]
    assert network(x).shape == maps[5].shape
    assert network.pooled(x).shape == (2, network.dim) and network.dim == maps[5].shape[1]
    assert network.pooled(x, 4).shape == (2, network.dims[3])
    assert models.map_shape(name, frames, size) == maps[5].shape[2:]
    assert [m.shape[1] for m in network.maps(x, (1, 2, 3, 4, 5)).values()] == list(network.dims)


@pytest.mark.parametrize("name", models.BACKBONES)
def test_the_least_input_that_is_named_is_the_least_there_is(name: str) -> None:
    known, network = models.BACKBONES[name], outline(name)

    def run(frames: int, size: int) -> None:
        models.check(name, frames, size)
        network(torch.empty(2, 3, frames, size, size, device="meta"))

    run(known.least_frames, known.size)
    run(known.frames, known.least_size)
    for frames, size in ((known.least_frames - 1, known.size), (known.frames, known.least_size - 1)):
        with pytest.raises(ValueError, match="do not fit"):
            models.check(name, frames, size)
        with pytest.raises(RuntimeError):  # the network itself says so too
            network(torch.empty(2, 3, frames, size, size, device="meta"))


@pytest.mark.parametrize("name", ["c3d", "r3d", "r2plus1d", "s3dg", "resnet2d3d_18"])
def test_width_and_channels_change_the_network_and_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(name, 8, 32, width=0.125, channels=1)
    assert network.dim <= outline(name).dim / 4
    x = torch.randn(3, 1, 8, 32, 32)
    features = network.pooled(x)
    assert torch.allclose(features, network.maps(x, (5,))[5].mean((2, 3, 4)))
    (features * torch.randn_like(features)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(ValueError, match="choose one of c3d, r3d"):
        models.build("i3d", 16, 112)
    for width, channels in ((0.5, 3), (1.0, 1)):
        with pytest.raises(ValueError, match="width 1 for 3 channels"):
            models.build("r3d_18", 16, 112, width, channels)


def test_a_flat_network_is_no_backbone_for_clips() -> None:
    with pytest.raises(ValueError, match="no such backbone"):
        models.check("resnet18", 16, 112)


@torch.no_grad()
def test_resnet2d3d_is_dpcs_encoder_before_its_mean_over_time() -> None:
    torch.manual_seed(0)
    theirs = ResNet2d3d(18, 0.125).eval()
    ours = models.build("resnet2d3d_18", 8, 64, 0.125).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 8, 64, 64)
    assert torch.equal(ours(x).mean(2), theirs(x))


def test_recomputed_activations_change_neither_gradients_nor_statistics() -> None:
    torch.manual_seed(0)
    x, found = torch.randn(2, 3, 8, 32, 32), []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        network = models.build("r2plus1d", 8, 32, 0.125, checkpointed=checkpointed)
        network.pooled(x).square().sum().backward()
        found.append([p.grad for p in network.parameters()] + list(network.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]


@torch.no_grad()
def test_r3d_is_torchvisions_with_one_block_a_stage() -> None:
    torch.manual_seed(0)
    theirs = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=4)
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.weight.uniform_(0.5, 1.5)
        norm.running_mean.normal_(0, 0.1)
    ours = R3D()
    names = [name for name in theirs.state_dict() if not name.startswith("fc")]
    ours.load_state_dict(
        {name: theirs.state_dict()[other] for name, other in zip(ours.state_dict(), names, strict=True)}
    )
    x = torch.randn(1, 3, 8, 32, 32)
    logits = theirs.eval().fc(ours.eval().pooled(x))
    assert torch.allclose(logits, theirs(x), atol=1e-5)


@torch.no_grad()
def test_a_factored_convolution_has_as_many_weights_as_the_full_one_and_its_reach() -> None:
    for inputs, outputs, kernel in ((3, 64, (3, 7, 7)), (64, 128, (3, 3, 3)), (256, 512, (1, 1, 1))):
        conv = FactoredConv(inputs, outputs, kernel, (1, 1, 1))
        full = inputs * outputs * kernel[0] * kernel[1] * kernel[2]
        weights = conv.spatial.weight.numel() + conv.temporal.weight.numel()
        one_channel_more = weights // conv.spatial.out_channels
        assert weights <= full < weights + one_channel_more
    conv = FactoredConv(2, 3, (3, 3, 3), (2, 2, 2)).eval()
    x = torch.zeros(1, 2, 9, 9, 9)
    before = conv(x)
    x[:, :, 4, 4, 4] = 1
    moved = (conv(x) - before).abs().sum((0, 1)) > 0
    assert moved.shape == (5, 5, 5) and moved.nonzero().unique().tolist() == [2]
    x[:, :, 5, 4, 4] = 1  # between two strides of time: both see it
    assert ((conv(x) - before).abs().sum((0, 1)) > 0).nonzero()[:, 0].unique().tolist() == [2, 3]


@torch.no_grad()
def test_self_gating_weighs_each_channel_by_the_clips_average() -> None:
    torch.manual_seed(0)
    gate, x = SelfGating(3), torch.randn(2, 3, 2, 4, 4)
    for b in range(2):
        mean = [float(x[b, c].mean()) for c in range(3)]
        for c in range(3):
            score = sum(float(gate.fc.weight[c, k]) * mean[k] for k in range(3)) + float(gate.fc.bias[c])
            share = 1 / (1 + 2.718281828459045**-score)
            assert torch.allclose(gate(x)[b, c], x[b, c] * share, atol=1e-6)


def test_max_pooling_reaches_over_the_far_edge_only() -> None:
    x = torch.rand(1, 1, 6, 8, 8)

    def expected(axis: Tensor) -> Tensor:
        return torch.stack([axis[2 * i : 2 * i + 3].amax(0) for i in range(len(axis) // 2)])

    spatial = MaxPool((1, 3, 3), (1, 2, 2))(x)[0, 0]
    by_hand = expected(expected(x[0, 0].permute(1, 2, 0)).transpose(0, 1)).permute(2, 1, 0)
    assert torch.equal(spatial, by_hand)
    assert MaxPool((3, 3, 3), (2, 2, 2))(x).shape == (1, 1, 3, 4, 4)
    assert MaxPool((2, 2, 2), (2, 2, 2))(x)[0, 0, 0, 0, 0] == x[0, 0, :2, :2, :2].max()
