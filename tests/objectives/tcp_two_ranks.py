"""What each of two processes does in test_tcp.py: it writes what it saw; the test compares that with one process."""

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tcp_reference import given_features, random_views, tiny
from torch.nn.parallel import DistributedDataParallel

WORLD, HALF, V, K, D = 2, 2, 4, 3, 5


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mine = slice(rank * HALF, (rank + 1) * HALF)
    objective = tiny(negatives="gathered")
    z, predicted = (x[mine].clone().requires_grad_() for x in given_features(WORLD * HALF, V, K, D))
    output = objective.contrast(z, predicted)
    output.loss.backward()

    parallel = DistributedDataParallel(objective)  # raises in the second step if a parameter has no gradient
    for _ in range(2):
        objective.zero_grad()
        parallel({"views": random_views(HALF, objective, seed=rank)}).loss.backward()
    trained = torch.cat([p.grad.flatten() for p in objective.parameters()])
    metrics = {name: output.metrics[name] for name in ("top1", "chance", "top1_3")}
    tensors = {"loss": output.loss.detach(), "z": z.grad, "predicted": predicted.grad, "trained": trained}
    save_file(tensors | metrics, f"{folder}/rank-{rank}.safetensors")
    dist.destroy_process_group()
