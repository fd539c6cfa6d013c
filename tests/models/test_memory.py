"""The compressive memory: a prediction is a convex combination of the slots."""

import pytest
import torch

from models.dpc import CompressiveMemory


@torch.no_grad()
def test_predictions_are_convex_combinations_of_the_slots() -> None:
    torch.manual_seed(0)
    memory, logits = CompressiveMemory(5, 3), 4 * torch.randn(2, 5, 2, 3)
    z, log_p = memory(logits)
    assert z.shape == (2, 3, 2, 3) and log_p.shape == logits.shape
    for b in range(2):
        for i in range(2):
            for j in range(3):
                weights = [torch.exp(x) for x in logits[b, :, i, j]]
                p = [float(w / sum(weights)) for w in weights]
                assert log_p[b, :, i, j].exp().tolist() == pytest.approx(p, abs=1e-6)
                expected = sum(share * slot for share, slot in zip(p, memory.slots, strict=True))
                torch.testing.assert_close(z[b, :, i, j], expected)
    assert (z >= memory.slots.amin(0)[None, :, None, None]).all()
    assert (z <= memory.slots.amax(0)[None, :, None, None]).all()


@torch.no_grad()
def test_certainty_recalls_one_slot() -> None:
    memory = CompressiveMemory(4, 3)
    logits = torch.full((1, 4, 1, 1), -1e4)
    logits[0, 2] = 0
    torch.testing.assert_close(memory(logits)[0][0, :, 0, 0], memory.slots[2])


def test_slots_begin_as_standard_normals_and_are_learned() -> None:
    torch.manual_seed(0)
    memory = CompressiveMemory(1024, 256)
    assert float(memory.slots.detach().mean()) == pytest.approx(0, abs=0.01)
    assert float(memory.slots.detach().std()) == pytest.approx(1, abs=0.01)
    memory(torch.randn(1, 1024, 1, 1))[0].sum().backward()
    assert memory.slots.grad is not None and memory.slots.grad.all()
