"""The 2D3D-ResNet against the papers' sizes and counts, and what a block's feature depends on."""

import pytest
import torch
from torch import nn

from models.dpc import ResNet2d3d


@pytest.mark.parametrize(("depth", "count"), [(18, 14_057_536), (34, 32_422_208)])
def test_parameters_are_the_papers_to_the_unit(depth: int, count: int) -> None:
    for norm in ("batch", "batch-statistics", "instance"):
        with torch.device("meta"):
            assert sum(p.numel() for p in ResNet2d3d(depth, norm=norm).parameters()) == count


@pytest.mark.parametrize(("depth", "dim"), [(18, 256), (34, 256), (50, 1024)])
def test_feature_sizes(depth: int, dim: int) -> None:
    with torch.device("meta"):
        encoder = ResNet2d3d(depth)
        for size, side in ((128, 4), (224, 7), (112, 4), (64, 2)):
            assert encoder(torch.empty(2, 3, 5, size, size)).shape == (2, dim, side, side)
    assert encoder.dim == dim


def test_stages_have_the_sizes_of_table_5() -> None:
    """MemDPC Table 5, as channels × T × H × W."""
    with torch.device("meta"):
        encoder, sizes = ResNet2d3d(18), []
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
        encoder(torch.empty(1, 3, 5, 128, 128))
    assert sizes == [(64, 5, 32, 32), (128, 5, 16, 16), (256, 3, 8, 8), (256, 2, 4, 4)]


def test_only_the_last_two_stages_see_time() -> None:
    encoder = ResNet2d3d(50, 0.05)
    for stage, in_time in zip((1, 2, 3, 4), (False, False, True, True), strict=True):
        kernels = [
            m.kernel_size[0] for m in getattr(encoder, f"layer{stage}").modules() if isinstance(m, nn.Conv3d)
        ]
        assert (max(kernels) == 3) == in_time and set(kernels) <= {1, 3}


@torch.no_grad()
def test_the_feature_is_the_mean_over_time_and_has_no_relu() -> None:
    torch.manual_seed(0)
    encoder, maps = ResNet2d3d(18, 0.1).eval(), []
    encoder.layer4.register_forward_hook(lambda _m, _i, out: maps.append(out))
    z = encoder(torch.randn(2, 3, 9, 64, 64))
    assert maps[0].shape[2] == 3  # of 9 frames, a quarter rounded up
    torch.testing.assert_close(z, sum(maps[0].unbind(2)) / 3)
    assert (z < 0).any() and (z > 0).any()


@torch.no_grad()
def test_a_block_knows_nothing_of_the_others_in_eval_mode() -> None:
    torch.manual_seed(0)
    encoder = ResNet2d3d(18, 0.1).eval()
    x = torch.randn(3, 3, 5, 64, 64)
    changed = x.clone()
    changed[1:] += 1
    torch.testing.assert_close(encoder(changed)[0], encoder(x)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(changed)[1], encoder(x)[1], rtol=1e-2)


@torch.no_grad()
def test_batch_statistics_are_used_in_evaluation_too() -> None:
    torch.manual_seed(0)
    encoder = ResNet2d3d(18, 0.1, "batch-statistics")
    assert not [name for name, _ in encoder.named_buffers()]
    x = torch.randn(3, 3, 5, 64, 64)
    torch.testing.assert_close(encoder.eval()(x), encoder.train()(x))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(norm: str) -> None:
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder = ResNet2d3d(18, 0.05, norm, checkpointed=checkpointed)
        z = encoder(torch.randn(2, 3, 5, 64, 64))
        z.square().sum().backward()
        results.append(([z.detach(), *(p.grad for p in encoder.parameters())], dict(encoder.named_buffers())))
    (plain, statistics), (again, statistics_again) = results
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
    for name, value in statistics.items():
        torch.testing.assert_close(value, statistics_again[name])


def test_width_multiplies_every_channel_count() -> None:
    encoder = ResNet2d3d(18, 0.25)
    assert (encoder.conv1.out_channels, encoder.dim) == (16, 64)
    assert encoder.layer2[0].conv2.out_channels == 32
