"""Waiting on a GPU: what it stands still for, not what the thread that feeds it does meanwhile."""

import time

import pytest
import torch

from training.metrics import Meter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PAUSE = 0.05  # seconds


def waited(busy: bool) -> float:
    """Seconds of waiting where a batch takes PAUSE and the GPU has far more to do, or nothing."""
    meter = Meter(torch.device("cuda"))
    torch.cuda.synchronize()
    if busy:
        torch.cuda._sleep(int(20 * PAUSE * 1e9))  # cycles: at no more than 2 GHz, ten times the pause
    with meter.waiting():
        time.sleep(PAUSE)
    (seconds,) = meter.waits()
    return seconds


def test_only_a_gpu_that_stands_still_waits() -> None:
    waited(busy=False)
    assert waited(busy=True) < 0.5 * waited(busy=False)  # others may be at work on the GPU
