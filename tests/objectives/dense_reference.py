"""DPC Eq. 5 written out in loops, and what each of two processes does in test_dense.py."""

import json
import math
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from objectives import losses

WORLD, HALF, N, L, D = 2, 2, 3, 4, 5


def slow(
    predicted: Tensor, target: Tensor, cosine: bool = False, temperature: float = 1.0
) -> dict[str, float]:
    """Loss, top-k and shares of negatives of (B, N, L, D) predictions and targets, in Python floats."""
    B, N, L, _ = target.shape
    places = list(product(range(B), range(N), range(L)))
    kinds = dict.fromkeys(("temporal", "spatial", "easy"), 0)
    costs, ranks = [], []

    def vector(x: Tensor, place: tuple[int, int, int]) -> list[float]:
        values = x[place].double().tolist()
        length = math.sqrt(sum(v * v for v in values)) if cosine else 1
        return [v / length for v in values]

    for b, i, k in places:
        scores = {}
        for other in places:
            pair = zip(vector(predicted, (b, i, k)), vector(target, other), strict=True)
            scores[other] = sum(p * q for p, q in pair) / temperature
            if other == (b, i, k):
                continue
            if other[0] != b:
                kinds["easy"] += 1
            elif other[2] != k:
                kinds["spatial"] += 1
            else:
                kinds["temporal"] += 1
        top = max(scores.values())
        normaliser = top + math.log(sum(math.exp(s - top) for s in scores.values()))
        costs.append(normaliser - scores[b, i, k])
        ranks.append(sum(s > scores[b, i, k] for s in scores.values()))
    negatives = max(sum(kinds.values()), 1)
    return {
        "loss": sum(costs) / len(costs),
        **{f"top{n}": sum(rank < n for rank in ranks) / len(ranks) for n in (1, 3, 5)},
        **{kind: count / negatives for kind, count in kinds.items()},
        "chance": 1 / len(places),
    }


def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (2, WORLD * HALF, N, L, D)
    predicted, target = torch.randn(shape, generator=generator).unbind(0)
    return predicted, target


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mine = slice(rank * HALF, (rank + 1) * HALF)
    predicted, target = (x[mine].clone().requires_grad_() for x in features())
    loss, metrics = losses.dense_nce(predicted, target, gathered=True, at_once=40)
    loss.backward()
    save_file(
        {"loss": loss.detach(), "predicted": predicted.grad, "target": target.grad},
        f"{folder}/rank-{rank}.safetensors",
    )
    Path(folder, f"rank-{rank}.json").write_text(json.dumps({k: float(v) for k, v in metrics.items()}))
    dist.destroy_process_group()
