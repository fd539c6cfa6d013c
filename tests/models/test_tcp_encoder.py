"""TCP's encoder against torchvision's ResNet18 and counts made here; gradient checkpointing against none."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torchvision.models import resnet18

from models.networks import run_checkpointed
from models.tcp import StackedResNet18


def weights(inputs: int, width: float) -> int:
    """Parameters of a ResNet18 body: a 7×7 convolution, eight blocks of two 3×3, three 1×1 shortcuts, norms."""
    c = [round(width * channels) for channels in (64, 64, 128, 256, 512)]
    count = 49 * inputs * c[0] + 2 * c[0]
    for before, now in pairwise(c):
        count += 9 * before * now + 3 * 9 * now * now + 4 * 2 * now
        count += before * now + 2 * now if before != now else 0
    return count


@pytest.mark.parametrize(("inputs", "width"), [(3, 1.0), (30, 1.0), (20, 1.0), (10, 1.0), (30, 0.25)])
def test_parameters(inputs: int, width: float) -> None:
    encoder = StackedResNet18(inputs, width)
    assert sum(p.numel() for p in encoder.parameters()) == weights(inputs, width)
    assert inputs != 3 or weights(3, 1.0) == 11_689_512 - 513_000  # torchvision's, less its head


@torch.no_grad()
def test_with_three_channels_it_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = resnet18().eval()
    ours = StackedResNet18(3).eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc")}
    ours.load_state_dict(state, strict=True)
    x, seen = torch.randn(2, 3, 64, 96), []
    theirs.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out))
    theirs(x)
    torch.testing.assert_close(ours(x), seen[0])


@pytest.mark.parametrize(
    ("inputs", "width", "side", "shape"),
    [(30, 1.0, 224, (512, 7, 7)), (20, 0.25, 112, (128, 4, 4)), (10, 1 / 64, 33, (8, 2, 2))],
)
@torch.no_grad()
def test_sizes(inputs: int, width: float, side: int, shape: tuple[int, ...]) -> None:
    encoder = StackedResNet18(inputs, width).eval()
    assert encoder(torch.randn(1, inputs, side, side)).shape == (1, *shape)
    assert encoder.dim == shape[0]


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    after = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder = StackedResNet18(4, 1 / 16, checkpointed=checkpointed).train()
        x = torch.randn(3, 4, 64, 64, requires_grad=True)
        encoder(x).square().mean().backward()
        after.append((x.grad, [p.grad for p in encoder.parameters()], list(encoder.buffers())))
    torch.testing.assert_close(after[0], after[1])


def test_checkpointing_keeps_less() -> None:
    """What autograd keeps of one stage is its input, not the activations inside."""

    def kept(call: Callable[[], object]) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            call()
        return sum(sizes)

    stage = StackedResNet18(4, 1 / 16).train().layer1
    x = torch.randn(3, 4, 16, 16, requires_grad=True)
    assert kept(lambda: run_checkpointed(stage, x)) <= x.numel() < kept(lambda: stage(x)) / 8
