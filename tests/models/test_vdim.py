"""VDIM's networks against Table 1 of the paper and against arithmetic done here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vdim import ContrastiveModel, VDIMEncoder

# Block: (channels, time, height, width), copied from the paper's Table 1.
TABLE_1 = {
    1: (64, 16, 64, 64),
    2: (64, 14, 62, 62),
    3: (128, 14, 30, 30),
    4: (256, 14, 14, 14),
    5: (512, 7, 7, 7),
    6: (512, 5, 5, 5),
    7: (512, 3, 3, 3),
    8: (512, 1, 1, 1),
}
# Kernel and stride of each block in time and in space, copied from METHODS.
TIME = [(5, 2), (3, 1), (1, 1), (1, 1), (2, 2), (3, 1), (3, 1), (3, 1)]
SPACE = [(5, 2), (3, 1), (4, 2), (4, 2), (2, 2), (3, 1), (3, 1), (3, 1)]
INPUT = (32, 128, 128)
PADDING = 2  # of the first block


@pytest.fixture(scope="module")
def full() -> VDIMEncoder:
    return VDIMEncoder().eval()


def field(axis: list[tuple[int, int]], block: int, location: int) -> tuple[int, int]:
    """First and last input position that one location of a block depends on, by the textbook recursion."""
    size, jump = 1, 1
    for kernel, stride in axis[:block]:
        size, jump = size + (kernel - 1) * jump, jump * stride
    first = location * jump - PADDING
    return first, first + size - 1


def conv_weights(module: nn.Module) -> int:
    """Numbers in convolution kernels, biases and norms left out."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv3d))


@torch.no_grad()
def test_every_stage_has_the_size_of_table_1(full: VDIMEncoder) -> None:
    x, sizes = torch.randn(1, 3, *INPUT), {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, index=int(index): sizes.update({index: out.shape[1:]})
        )
        for index, block in full.blocks.items()
    ]
    features = full(x, (5, 6, 8))
    for hook in hooks:
        hook.remove()
    assert {index: tuple(size) for index, size in sizes.items()} == TABLE_1
    assert {index: tuple(f.shape) for index, f in features.items()} == {
        j: (1, *TABLE_1[j]) for j in (5, 6, 8)
    }


def test_parameter_count_is_the_papers(full: VDIMEncoder) -> None:
    phi = ContrastiveModel(512, 512)
    assert conv_weights(full) == 16_507_584
    assert conv_weights(full) + conv_weights(phi) == 17_294_016
    everything = sum(p.numel() for module in (full, phi) for p in module.parameters())
    assert abs(everything - 17.3e6) < 0.01 * 17.3e6


def test_encoder_has_no_norm_but_the_one_on_its_output(full: VDIMEncoder) -> None:
    norms = [name for name, m in full.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms == ["norm"]
    x = torch.randn(2, 3, *INPUT)
    small = VDIMEncoder(1 / 16).train()
    with torch.no_grad():
        out = small(x, (6, 8))
        raw = out[6]
        for index in ("7", "8"):
            raw = small.blocks[index](raw)
    mean, var = raw.mean((0, 2, 3, 4), keepdim=True), raw.var((0, 2, 3, 4), keepdim=True, unbiased=False)
    torch.testing.assert_close(out[8], (raw - mean) / (var + small.norm.eps).sqrt(), rtol=1e-4, atol=1e-4)


def all_paths_open(width: float) -> VDIMEncoder:
    """In eval mode with random weights above 0, so that with an input above 0 no ReLU closes a path."""
    encoder = VDIMEncoder(width).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv3d):
                fan_in = module.weight[0].numel()
                weights = torch.rand(module.weight.shape, generator=generator, dtype=torch.float64)
                module.weight.copy_((0.1 + weights) / fan_in)
    return encoder


def touched(encoder: VDIMEncoder, block: int, location: int) -> Tensor:
    """(T, H, W) bool: input positions with a gradient from one location (the same index on every axis)."""
    x = 0.1 + torch.rand(1, 3, *INPUT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    encoder(x, (block,))[block][0, :, location, location, location].sum().backward()
    assert x.grad is not None
    return (x.grad[0] != 0).any(0)


@pytest.mark.parametrize(("block", "centre", "time", "space"), [(5, 3, 11, 35), (6, 2, 19, 67)])
def test_local_features_see_a_patch_of_the_input(block: int, centre: int, time: int, space: int) -> None:
    expected = torch.zeros(INPUT, dtype=torch.bool)
    (t0, t1), (s0, s1) = field(TIME, block, centre), field(SPACE, block, centre)
    assert (t1 - t0 + 1, s1 - s0 + 1) == (time, space)
    assert min(t0, s0) >= 0 and t1 < INPUT[0] and s1 < INPUT[1]  # nothing is cut off: the field is all there
    expected[t0 : t1 + 1, s0 : s1 + 1, s0 : s1 + 1] = True
    seen = touched(all_paths_open(1 / 32), block, centre)
    extents = [int(seen.any(other).sum()) for other in ((1, 2), (0, 2), (0, 1))]
    assert extents == [time, space, space]
    assert torch.equal(seen, expected)
    assert all(extent < size for extent, size in zip(extents, INPUT, strict=True))


def test_global_feature_sees_the_whole_input() -> None:
    (t0, t1), (s0, s1) = field(TIME, 8, 0), field(SPACE, 8, 0)
    assert (t1 - t0 + 1, s1 - s0 + 1) == (35, 131)  # more than there is
    assert touched(all_paths_open(1 / 32), 8, 0).all()


def test_every_local_feature_sees_what_the_recursion_says_at_the_border() -> None:
    encoder = all_paths_open(1 / 32)
    for location in (0, 6):
        (t0, t1), (s0, s1) = field(TIME, 5, location), field(SPACE, 5, location)
        expected = torch.zeros(INPUT, dtype=torch.bool)
        expected[max(t0, 0) : t1 + 1, max(s0, 0) : s1 + 1, max(s0, 0) : s1 + 1] = True
        assert torch.equal(touched(encoder, 5, location), expected)


@pytest.mark.parametrize("width", [1 / 32, 0.125, 0.2])
@torch.no_grad()
def test_width_multiplies_every_channel_count(width: float) -> None:
    encoder = VDIMEncoder(width).eval()
    features = encoder(torch.randn(1, 3, *INPUT), (3, 5, 8))
    for index, f in features.items():
        channels, *size = TABLE_1[index]
        assert tuple(f.shape) == (1, round(channels * width), *size)
        assert encoder.dims[index] == f.shape[1]
    assert encoder.dim == round(512 * width)


def test_the_narrowest_encoder_has_a_channel() -> None:
    assert VDIMEncoder(1e-6).dim == 1


@torch.no_grad()
def test_asking_for_more_layers_changes_none() -> None:
    encoder, x = VDIMEncoder(1 / 32).eval(), torch.randn(1, 3, *INPUT)
    together = encoder(x, (5, 6, 8))
    assert sorted(encoder(x)) == [8]
    for layer in (5, 6, 8):
        assert torch.equal(encoder(x, (layer,))[layer], together[layer])


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (6, 10), (10, 6)])
@torch.no_grad()
def test_contrastive_model_is_a_residual_mlp_at_every_location(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    phi = ContrastiveModel(inputs, outputs)
    for parameter in phi.parameters():
        parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(3, inputs, 2, 4, 5)
    rows = x.permute(0, 2, 3, 4, 1).reshape(-1, inputs)
    hidden, out, shortcut = (m.weight.flatten(1) for m in (phi.hidden, phi.out, phi.shortcut))
    projected = F.relu(rows @ hidden.T) @ out.T + rows @ shortcut.T + phi.shortcut.bias
    torch.testing.assert_close(
        phi.project(x).permute(0, 2, 3, 4, 1).reshape(-1, outputs), projected, rtol=1e-4, atol=1e-4
    )
    normed = (projected - projected.mean(0)) / (projected.var(0, unbiased=False) + phi.norm.eps).sqrt()
    expected = normed * phi.norm.weight + phi.norm.bias
    torch.testing.assert_close(
        phi.train()(x).permute(0, 2, 3, 4, 1).reshape(-1, outputs), expected, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_contrastive_shortcut_starts_as_the_identity() -> None:
    phi, x = ContrastiveModel(8, 8), torch.randn(2, 8, 3, 2, 2)
    torch.testing.assert_close(phi.shortcut(x), x)
    grown = ContrastiveModel(3, 5).shortcut(torch.ones(1, 3, 1, 1, 1)).flatten()
    assert grown.tolist() == [1, 1, 1, 0, 0]
