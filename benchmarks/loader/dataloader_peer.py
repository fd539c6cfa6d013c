"""The peer that a user would write: DataLoader workers, torchcodec, torchvision v2, on the same samples as ours."""

import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.loader.parts import Options
from benchmarks.loader.rounds import Figures, Part, rate
from benchmarks.loader.source import Source, UncheckedReads
from benchmarks.loader.transforms import clip, color_jitter, mean_difference
from shards import InputError

AHEAD = 2  # batches a worker, DataLoader's default


class Clips(Dataset):
    """A run's samples by number. device: torchcodec's; on a GPU `threads` clips of a batch are made at a time.

    jitter: see transforms.clip.
    """

    def __init__(
        self, source: Source, device: str = "cpu", threads: int = 1, jitter: nn.Module | None = None
    ) -> None:
        self._source, self._device, self._threads, self._jitter = source, device, threads, jitter
        self._read = UncheckedReads(source)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, params = self._source.sample(number)
        views = clip(self._read(row), params, self._source.spec, self._device, self._jitter)
        return {"views": views} | ({} if params.pace is None else {"pace": torch.from_numpy(params.pace)})

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        if self._threads == 1:
            return [self[number] for number in numbers]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self.__getitem__, numbers))


class Numbers(Sampler[int]):
    """`count` numbers from `first` on; both may change between two passes."""

    first = count = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.count))

    def __len__(self) -> int:
        return self.count


class DataLoaderPeer:
    """A DataLoader whose workers stay; call it for a round. cuda: torchcodec decodes on the GPU, in this process."""

    def __init__(
        self,
        source: Source,
        workers: int,
        batches: int,
        device: torch.device,
        *,
        cuda: bool = False,
        threads: int = 1,
        jitter: nn.Module | None = None,
    ) -> None:
        check_torchcodec()
        self.workers, self._batches, self._clips, self._device = workers, batches, source.batch_size, device
        self._numbers = Numbers()
        kept: dict[str, Any] = (
            {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
        )
        self._loader = DataLoader(
            Clips(source, "cuda" if cuda else "cpu", threads if cuda else 1, jitter),
            source.batch_size,
            sampler=self._numbers,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=device.type == "cuda" and not cuda,
            **kept,
        )

    def __call__(self, first: int) -> Figures:
        """As parts.loader_alone; workers_rss_gib is the memory of all workers."""
        warm = max(self.workers, 1)
        # as many batches more as there are workers: all of them work until the last that is timed
        batches = self.take(first, warm + self._batches + self.workers)
        for _ in range(warm):
            next(batches)
        workers = self._processes()
        figures = rate(lambda: next(batches), self._batches, self._clips, self._device, workers)
        figures["workers_rss_gib"] = (
            sum(psutil.Process(worker).memory_info().rss for worker in workers) / 2**30
        )
        for _ in batches:
            pass
        return figures

    def take(self, first: int, batches: int) -> Iterator[dict[str, Any]]:
        """Batches on the device, from sample `first` on."""
        self._numbers.first, self._numbers.count = first, batches * self._clips
        for batch in self._loader:
            yield {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}

    def close(self) -> None:
        """End the workers."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _processes(self) -> list[int]:
        return [worker.pid for worker in getattr(self._loader._iterator, "_workers", [])]


def dataloader_peers(
    source: Source, options: Options, views: Tensor, batches: int, counts: tuple[int, ...], stack: ExitStack
) -> dict[str, tuple[Figures, Part | None]]:
    """The DataLoader with the best of these numbers of workers; the same with torchvision's ColorJitter, where the spec
    has a jitter; on a GPU also with torchcodec's CUDA decoder. As measure._peers has them.

    views: our first batch's. stack: ends the workers. Raises InputError without torchcodec, or where the tars are elsewhere.
    """
    if missing := [tar for tar in source.dataset.shards if not (source.dataset.path / tar).is_file()]:
        raise InputError(
            f"--against dataloader: {source.dataset.path} has no {missing[0]}; copy the data set here"
        )
    device = options.device
    best, tried = best_peer(
        source, list(counts) or worker_counts(len(os.sched_getaffinity(0))), batches, device
    )
    stack.callback(best.close)

    def difference(peer: DataLoaderPeer) -> float:
        (batch,) = peer.take(0, 1)
        return mean_difference(views, batch["views"], source.spec)

    known = {"title": f"DataLoader + torchcodec, workers: {best.workers}", "workers": best.workers}
    known |= {"tried": tried, "mean_difference_levels": difference(best)}
    found: dict[str, tuple[Figures, Part | None]] = {"dataloader": (known, best)}
    if (jitter := color_jitter(source.spec)) is not None:
        usual = DataLoaderPeer(source, best.workers, batches, device, jitter=jitter)
        stack.callback(usual.close)
        known = {"title": "the same with ColorJitter", "workers": best.workers}
        found["dataloader-colorjitter"] = known, usual
    if device.type == "cuda":
        threads = min(options.threads, source.batch_size)
        known = {"title": "DataLoader + torchcodec on CUDA", "workers": 0, "threads": threads}
        try:
            peer = DataLoaderPeer(source, 0, batches, device, cuda=True, threads=threads)
            found["dataloader-cuda"] = known | {"mean_difference_levels": difference(peer)}, peer
        except RuntimeError as error:  # torchcodec without CUDA, or NVDEC out of reach
            known["left_out"] = f"{known['title']}: {str(error).splitlines()[0]}"
            found["dataloader-cuda"] = known, None
    return found


def best_peer(
    source: Source, counts: list[int], batches: int, device: torch.device
) -> tuple[DataLoaderPeer, dict[str, float]]:
    """The peer with the best of these numbers of workers, and the clips/s of each."""
    tried: dict[str, float] = {}
    best: DataLoaderPeer | None = None
    for count in counts:
        peer = DataLoaderPeer(source, count, batches, device)
        tried[str(count)] = peer(0)["clips_per_s"]
        if best is None or tried[str(count)] > tried[str(best.workers)]:
            best, peer = peer, best
        if peer is not None:
            peer.close()
    assert best is not None
    return best, tried


def worker_counts(cores: int) -> list[int]:
    """0, 1, 2, 4, 8 … and the cores."""
    return sorted({0, cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)})


def check_torchcodec() -> None:
    """Raise InputError that says what the peer lacks."""
    if importlib.util.find_spec("torchcodec") is None:
        raise InputError("--against dataloader: torchcodec is not installed; pip install -e '.[bench]'")
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--against dataloader: torchcodec cannot be loaded ({reason}); it needs FFmpeg's shared libraries "
            "from the system, such as Debian's ffmpeg"
        ) from error
