"""What the slots of MemDPC's memory stand for (its appendix E): how much each is used, and the clips that address it most.

memory.npz  usage (k,), the mean of p over all training windows; norm (k,), ‖M‖; p (M, k), each training video's mean,
            with label (M,); slot (n,), the n most used; key (n, 3), start (n, 3) and share (n, 3) of their clips
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation.bench import Bench
from evaluation.features import Features
from evaluation.model import ADDRESSES
from evaluation.splits import Split
from pipelines.eval_clips import EvalLayout
from shards.atomic import atomic_write

SLOTS, CLIPS = 6, 3


def addresses(bench: Bench, split: Split) -> Features | None:
    """p of the training windows, (N, k); None of a network without a memory. All processes call it together."""
    if not hasattr(bench.model.objective, ADDRESSES):
        return None
    looking = replace(bench, settings=replace(bench.settings, layer=ADDRESSES))
    train = bench.downstream.train
    return looking.extract(split.train, EvalLayout(train.count, train.hop))


def save_memory(folder: Path, bench: Bench, p: Features, labels: np.ndarray) -> None:
    """Write memory.npz."""
    usage = p.x.mean(0, dtype=np.float64)
    slots = np.argsort(-usage, kind="stable")[:SLOTS]
    places = np.stack([_best(p, slot) for slot in slots])
    videos = p.by_video()
    memory = bench.model.objective.get_parameter("memory.slots")
    with atomic_write(folder / "memory.npz") as aside, aside.open("wb") as handle:
        np.savez_compressed(
            handle,
            usage=usage,
            norm=memory.detach().norm(dim=1).cpu().numpy(),
            p=videos.x,
            label=labels[videos.row],
            slot=slots,
            key=np.array(bench.dataset.keys(p.row[places].ravel())).reshape(places.shape),
            start=p.start[places],
            share=p.x[places, slots[:, None]],
        )


def _best(p: Features, slot: int) -> np.ndarray:
    """The windows (CLIPS,) of different videos to whose prediction the slot gives most, the last again where they are
    fewer."""
    order = np.argsort(-p.x[:, slot], kind="stable")
    first = np.sort(np.unique(p.row[order], return_index=True)[1])[:CLIPS]
    return order[np.pad(first, (0, CLIPS - len(first)), mode="edge")]
