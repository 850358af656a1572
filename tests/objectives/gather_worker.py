"""One rank of `test_gather.py`: rank, world size, rendezvous file, output file."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from solo_infoaug.objectives import FMICLLoss

BATCH, WIDTH = 8, 6


def data() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.manual_seed(1)
    return x, y, torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)


def main(rank: int, world: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    x, y, encoder = data()
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    model = DistributedDataParallel(encoder)
    found = {}
    for negatives in ("views", "keys"):
        for gather in (True, False):
            model.zero_grad()
            objective = FMICLLoss("js", negatives=negatives, gather=gather)
            views = [model(x[mine]), model(y[mine])]
            loss = objective.mean_terms(views, views[::-1]).loss(objective.alpha)
            loss.backward()
            total = loss.detach().clone()
            dist.all_reduce(total)
            assert encoder.weight.grad is not None
            found[negatives, gather] = (total / world, encoder.weight.grad.clone())
    if rank == 0:
        torch.save(found, out)
    del model  # whose threads are to end before the group does, and not with the process
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
