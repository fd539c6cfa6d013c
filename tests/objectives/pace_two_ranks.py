"""What each of two processes does in test_pace_ranks.py: Pace's contrast over gathered clips, and a step under DDP."""

import torch
import torch.distributed as dist
from pace_reference import batch, tiny
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from objectives.losses import pair_nce

WORLD, VIDEOS, CLIPS, D = 2, 3, 2, 4
HALF = VIDEOS * CLIPS


def features() -> tuple[Tensor, Tensor, Tensor]:
    """z of all processes' clips, their videos, their paces."""
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(WORLD * HALF, D, generator=generator)
    paces = torch.randint(3, (WORLD * HALF,), generator=generator)
    return z, torch.arange(WORLD * VIDEOS).repeat_interleave(CLIPS), paces


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    z, videos, paces = features()
    mine, found = slice(rank * HALF, (rank + 1) * HALF), {}
    objective = tiny(negatives="gathered")
    for name, ids in (("context", videos), ("pace", paces)):
        own = z[mine].clone().requires_grad_()
        loss, metrics = pair_nce(own, ids[mine], gathered=True)
        loss.backward()
        found |= {
            f"{name}.loss": loss.detach(),
            f"{name}.gradient": own.grad,
            f"{name}.chance": metrics["chance"],
        }
    parallel = DistributedDataParallel(objective)
    for _ in range(2):  # raises in the second step if a parameter has no gradient
        objective.zero_grad()
        parallel(batch(2, 2, seed=rank)).loss.backward()
    found["parameters"] = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    save_file(
        {name: value.contiguous() for name, value in found.items()}, f"{folder}/rank-{rank}.safetensors"
    )
    dist.destroy_process_group()
