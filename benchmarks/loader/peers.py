"""The peers that a run is compared with: those that can be had here, and why others cannot."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor

from shards import InputError

from .color_jitter import color_jitter
from .dali_readers_peer import dali_readers
from .dataloader_peer import DataLoaderPeer, best_peer, worker_counts
from .parts import Way
from .rounds import Figures, Part
from .source import Source
from .spdl_peer import spdl
from .transforms import mean_difference


@dataclass(frozen=True)
class Peer:
    """title: for people. known: what there is to say beside its speed. part: None where it cannot run."""

    title: str
    known: Figures = field(default_factory=dict)
    part: Part | None = None


def dataloader_peers(
    source: Source, way: Way, views: Tensor, batches: int, counts: tuple[int, ...], stack: ExitStack
) -> dict[str, Peer]:
    """The DataLoader with the best of these numbers of workers; the same with torchvision's ColorJitter, where the spec
    has a jitter; on a GPU also with torchcodec's CUDA decoder.

    views: our first batch's. stack: ends the workers. Raises InputError without torchcodec, or where the tars are elsewhere.
    """
    if missing := [tar for tar in source.dataset.shards if not (source.dataset.path / tar).is_file()]:
        raise InputError(
            f"--against dataloader: {source.dataset.path} has no {missing[0]}; copy the data set here"
        )
    tried_counts = list(counts) or worker_counts(len(os.sched_getaffinity(0)))
    best, tried = best_peer(source, tried_counts, batches, way.device)
    stack.callback(best.close)

    def difference(peer: DataLoaderPeer) -> float:
        (batch,) = peer.take(0, 1)
        return mean_difference(views, batch["views"], source.spec)

    found = {
        "dataloader": Peer(
            f"DataLoader + torchcodec, workers: {best.workers}",
            {"workers": best.workers, "tried": tried, "mean_difference_levels": difference(best)},
            best,
        )
    }
    if (jitter := color_jitter(source.spec)) is not None:
        usual = DataLoaderPeer(source, best.workers, batches, way.device, jitter=jitter)
        stack.callback(usual.close)
        found["dataloader-colorjitter"] = Peer("the same with ColorJitter", {"workers": best.workers}, usual)
    if way.device.type == "cuda":
        title, threads = "DataLoader + torchcodec on CUDA", min(way.threads, source.batch_size)
        try:
            peer = DataLoaderPeer(source, 0, batches, way.device, cuda=True, threads=threads)
            known = {"workers": 0, "threads": threads, "mean_difference_levels": difference(peer)}
            found["dataloader-cuda"] = Peer(title, known, peer)
        except RuntimeError as error:  # torchcodec without CUDA, or NVDEC out of reach
            found["dataloader-cuda"] = Peer(title, {"left_out": f"{title}: {str(error).splitlines()[0]}"})
    return found


def dali_peer(source: Source, way: Way, batches: int, say: Callable[[str], None]) -> dict[str, Peer]:
    title = "DALI's readers and random operators"
    try:
        return {"dali-readers": Peer(title, {}, dali_readers(source, way, batches))}
    except InputError as error:
        say(str(error))
        return {"dali-readers": Peer(title, {"left_out": str(error)})}


def spdl_peers(source: Source, way: Way, batches: int) -> dict[str, Peer]:
    """SPDL in as many threads as our loader has, in both variants. Raises InputError where it is missing."""
    known = {"workers": way.threads}
    return {
        "spdl": Peer(
            f"SPDL tuned, uint8 crops, workers: {way.threads}", known, spdl(source, way.threads, batches)
        ),
        "spdl-window": Peer(
            "SPDL, one window a clip", known, spdl(source, way.threads, batches, tuned=False)
        ),
    }
