"""What each of two or four processes does in test_losses.py: it writes what it saw; the tests compare that with one process."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from vdim_reference import random_views, tiny

from objectives import losses

HALF, N, M, D = 3, 2, 4, 5


def features(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    a = torch.randn(world * HALF, N, D, generator=generator)
    return a, torch.randn(world * HALF, M, D, generator=generator)


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mine = slice(rank * HALF, (rank + 1) * HALF)
    a, c = (x[mine].clone().requires_grad_() for x in features(world))
    everyone, offset = losses.gather(c), losses.rank_offset(HALF)
    scores = losses.scores(a, everyone, scale=True)
    loss = losses.info_nce(scores, offset)
    loss.backward()
    z = torch.stack([x[:, 0] for x in features(world)], 1)[mine].clone().requires_grad_()
    nt_xent, _ = losses.nt_xent(z, temperature=0.2, gathered=True)
    nt_xent.backward()

    objective = tiny(negatives="gathered")
    parallel = DistributedDataParallel(objective)  # raises in the second step if a parameter has no gradient
    metrics = {}
    for _ in range(2):
        objective.zero_grad()
        output = parallel({"views": random_views(2, 3, seed=rank)})
        output.loss.backward()
        metrics = {name: float(value) for name, value in output.metrics.items()}
    gradients = torch.cat([p.grad.flatten() for p in objective.parameters()])
    save_file(
        {
            "gathered": everyone.detach(),
            "loss": loss.detach(),
            "top1": losses.top1(scores, offset),
            "a": a.grad,
            "c": c.grad,
            "nt_xent": nt_xent.detach(),
            "z": z.grad,
            "parameters": gradients,
        },
        f"{folder}/rank-{rank}.safetensors",
    )
    Path(folder, f"rank-{rank}.json").write_text(json.dumps({"offset": offset, "metrics": metrics}))
    dist.destroy_process_group()
