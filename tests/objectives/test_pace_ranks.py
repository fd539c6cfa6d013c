"""Gathered negatives: two processes compute what one with all clips does."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from pace_two_ranks import WORLD, features, rank_main
from safetensors.torch import load_file
from torch import Tensor

from objectives.losses import pair_nce


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(rank_main, (str(folder),), nprocs=WORLD, start_method="forkserver")
    return [load_file(Path(folder) / f"rank-{rank}.safetensors") for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["context", "pace"])
def test_gathered_contrast_is_that_of_one_process(ranks: list[dict[str, Tensor]], name: str) -> None:
    z, videos, paces = features()
    z.requires_grad_()
    loss, metrics = pair_nce(z, videos if name == "context" else paces)
    loss.backward()
    assert torch.allclose(torch.stack([r[f"{name}.loss"] for r in ranks]).mean(), loss, atol=1e-5)
    gradient = torch.cat([r[f"{name}.gradient"] for r in ranks]) / WORLD  # DDP takes the mean over ranks
    assert z.grad is not None and torch.allclose(gradient, z.grad, atol=1e-5)
    assert torch.allclose(torch.stack([r[f"{name}.chance"] for r in ranks]).mean(), metrics["chance"])


def test_ddp_steps_alike_on_all_ranks(ranks: list[dict[str, Tensor]]) -> None:
    assert torch.equal(ranks[0]["parameters"], ranks[1]["parameters"])
    assert ranks[0]["parameters"].abs().sum() > 0
