"""TCP's context networks: none looks ahead, and each is what its name says."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.tcp import ConvLSTM, MaskedConv3d, PooledLSTM, masked_conv2plus1d, masked_conv3d

NETWORKS = {
    "conv3d": masked_conv3d,
    "conv2plus1d": masked_conv2plus1d,
    "convlstm": ConvLSTM,
    "lstm": PooledLSTM,
}


def network(name: str, dim: int = 6) -> nn.Module:
    """In eval mode, with running statistics and norms that are not 0 and 1."""
    torch.manual_seed(0)
    made = NETWORKS[name](dim).train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        made(2 + torch.randn(4, dim, 5, 3, 3))
    return made.eval()


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15, deadline=None)
@given(T=st.integers(2, 10), cut=st.integers(1, 9), seed=st.integers(0, 2**31), factor=st.floats(-100, 100))
@torch.no_grad()
def test_no_context_knows_the_future(name: str, T: int, cut: int, seed: int, factor: float) -> None:
    cut, generator = min(cut, T - 1), torch.Generator().manual_seed(seed)
    made, h = network(name), torch.randn(2, 6, T, 3, 3, generator=generator)
    other = h.clone()
    other[:, :, cut:] = factor * torch.randn(2, 6, T - cut, 3, 3, generator=generator)
    c, d = made(h), made(other)
    assert torch.equal(c[:, :, :cut], d[:, :, :cut])
    assert not torch.equal(c[:, :, cut], d[:, :, cut])  # but it knows the present


@pytest.mark.parametrize(("name", "first"), [("conv3d", 3), ("conv2plus1d", 3), ("convlstm", 0), ("lstm", 0)])
def test_how_far_a_context_looks_back(name: str, first: int) -> None:
    """Three convolutions of three taps see seven segments, a recurrence all."""
    h = torch.randn(1, 6, 11, 3, 3, dtype=torch.float64, requires_grad=True)
    network(name).double()(h)[:, :, 9].sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == list(range(first, 10))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_contexts_have_the_size_of_what_they_are_made_of(name: str) -> None:
    h = torch.randn(2, 6, 4, 5, 3)
    assert network(name)(h).shape == ((2, 6, 4, 1, 1) if name == "lstm" else h.shape)


@torch.no_grad()
def test_masked_convolution_is_a_wider_one_with_its_future_masked() -> None:
    torch.manual_seed(0)
    masked = MaskedConv3d(4, 5, taps=3, side=3, bias=True)
    plain = torch.zeros(5, 4, 5, 3, 3)
    plain[:, :, :3] = masked.weight  # t−2, t−1, t; nothing of t+1, t+2
    x = torch.randn(2, 4, 6, 4, 4)
    torch.testing.assert_close(masked(x), F.conv3d(x, plain, masked.bias, padding=(2, 1, 1)))


@torch.no_grad()
def test_conv_lstm_on_one_pixel_is_an_lstm() -> None:
    torch.manual_seed(0)
    D, conv = 5, ConvLSTM(5)
    lstm = nn.LSTM(D, D, batch_first=True)
    entry, forget, out, candidate = conv.gates.weight[..., 1, 1].chunk(4)
    weight = torch.cat([entry, forget, candidate, out])  # torch's order
    bias = torch.cat([conv.gates.bias.chunk(4)[i] for i in (0, 1, 3, 2)])  # type: ignore[union-attr]
    lstm.weight_ih_l0.copy_(weight[:, :D])
    lstm.weight_hh_l0.copy_(weight[:, D:])
    lstm.bias_ih_l0.copy_(bias)
    lstm.bias_hh_l0.zero_()
    x = torch.randn(2, 7, D)
    torch.testing.assert_close(
        conv(x.transpose(1, 2)[..., None, None])[..., 0, 0].transpose(1, 2), lstm(x)[0]
    )


@torch.no_grad()
def test_pooled_lstm_sees_spatial_means_only() -> None:
    made, h = network("lstm"), torch.randn(2, 6, 4, 3, 3)
    shuffled = h.flatten(3)[..., torch.randperm(9)].unflatten(3, (3, 3))
    torch.testing.assert_close(made(shuffled), made(h))


def counts(dim: int) -> dict[str, int]:
    """Parameters by hand; a kernel's size × inputs × outputs, a norm's two a channel, a bias on the last layer."""
    middle = int(3 * 9 * dim * dim / (9 * dim + 3 * dim))
    return {
        "conv3d": 3 * 27 * dim**2 + dim + 2 * 2 * dim,
        "conv2plus1d": 3 * (9 * dim * middle + 2 * middle + 3 * middle * dim) + dim + 2 * 2 * dim,
        "convlstm": 9 * 2 * dim * 4 * dim + 4 * dim,
        "lstm": 4 * (2 * dim * dim + 2 * dim),
    }


@pytest.mark.parametrize("dim", [512, 48])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters(name: str, dim: int) -> None:
    with torch.device("meta"):
        made = NETWORKS[name](dim)
    assert sum(p.numel() for p in made.parameters()) == counts(dim)[name]


def test_order_of_the_papers_model() -> None:
    made = masked_conv3d(4)
    assert [type(m) for m in made] == [
        MaskedConv3d, nn.BatchNorm3d, nn.ReLU, MaskedConv3d, nn.BatchNorm3d, nn.ReLU, MaskedConv3d,
    ]  # fmt: skip
    kernels: list[Tensor] = [p for p in made.parameters() if p.ndim == 5]
    assert all(p.shape[2:] == (3, 3, 3) for p in kernels)
