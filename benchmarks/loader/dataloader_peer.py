"""The peer that a user would write: DataLoader workers, torchcodec, torchvision v2, on the same samples as ours.

Letters: N distinct frames, V views, T frames a view, F = V·T, P planes that are decoded, C channels, S side of a view.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from benchmarks.loader.parts import Options
from benchmarks.loader.rounds import Figures, Part, Source, check_installed, rate
from pipelines import colour
from pipelines.sampler import Sample
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.transforms import numpy as arithmetic
from pipelines.views import ViewSpec
from shards import InputError

_SRGB = torch.arange(256) / 255
_LINEAR = torch.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92)
_XYZ = torch.tensor(colour.XYZ_OVER_WHITE, dtype=torch.float32)
_PLANES: dict[str, Callable[[Tensor], Tensor]] = {
    "rgb": lambda frames: frames,
    "difference": F.rgb_to_grayscale,
    "flow": lambda frames: frames[:, 0].unflatten(1, (2, -1)),  # u above v in a grey picture
}


class Clips(Dataset):
    """A run's samples, whole batches of them, by number. device: torchcodec's; on a GPU `threads` clips of a batch are made at a time.

    jitter: see `clip`.
    """

    def __init__(
        self, source: Source, device: str = "cpu", threads: int = 1, jitter: nn.Module | None = None
    ) -> None:
        self._source, self._device, self._threads, self._jitter = source, device, threads, jitter

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        samples = self._source.samples(numbers[0], 1)
        if self._threads == 1:
            return [self._clip(sample) for sample in samples]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._clip, samples))

    def _clip(self, sample: Sample) -> dict[str, Any]:
        params, video = sample.params, self._source.read_unchecked(sample.row)
        views = clip(video, params, self._source.spec, self._device, self._jitter)
        return {"views": views} | ({} if params.pace is None else {"pace": torch.from_numpy(params.pace)})


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
        self._numbers: list[int] = []  # of a round's samples, which the DataLoader's sampler gives
        self._loader = DataLoader(
            Clips(source, "cuda" if cuda else "cpu", threads if cuda else 1, jitter),
            source.batch_size,
            sampler=self._numbers,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda" and not cuda,
        )

    def __call__(self, first: int) -> Figures:
        """As parts.loader_alone; workers_rss_gib is the memory of all workers."""
        warm = max(self.workers, 1)
        # as many batches more as there are workers: all of them work until the last that is timed
        batches = self.take(first, warm + self._batches + self.workers)
        for _ in range(warm):
            next(batches)
        workers = [worker.pid for worker in getattr(self._loader._iterator, "_workers", [])]
        figures = rate(lambda: next(batches), self._batches, self._clips, self._device, workers)
        figures["workers_rss_gib"] = (
            sum(psutil.Process(worker).memory_info().rss for worker in workers) / 2**30
        )
        for _ in batches:
            pass
        return figures

    def take(self, first: int, batches: int) -> Iterator[dict[str, Any]]:
        """Batches on the device, from sample `first` on."""
        self._numbers[:] = range(first, first + batches * self._clips)
        for batch in self._loader:
            yield {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}

    def close(self) -> None:
        """End the workers."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


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
    tried: dict[int, float] = {}
    for count in counts:
        with closing(DataLoaderPeer(source, count, batches, device)) as peer:
            tried[count] = peer(0)["clips_per_s"]
    best = max(tried, key=lambda count: tried[count])
    return DataLoaderPeer(source, best, batches, device), {
        str(count): clips for count, clips in tried.items()
    }


def worker_counts(cores: int) -> list[int]:
    """0, 1, 2, 4, 8 … and the cores."""
    return sorted({0, cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)})


def check_torchcodec() -> None:
    """Raise InputError that says what the peer lacks."""
    check_installed("dataloader", "torchcodec", "torchcodec", lambda: import_module("torchcodec.decoders"))


def clip(
    video: bytes, params: ViewParams, spec: ViewSpec, device: str = "cpu", jitter: nn.Module | None = None
) -> Tensor:
    """One sample's views (V, C, T, S, S) float32, as a backend makes them, on torchcodec's `device`.

    jitter: makes other colours, in place of those of `params`.
    """
    from torchcodec.decoders import VideoDecoder

    numbers, places = np.unique(params.frames, return_inverse=True)
    decoder = VideoDecoder(video, seek_mode="approximate", num_ffmpeg_threads=1, device=device)
    frames_NPHW = _PLANES[spec.modality](decoder.get_frames_at(numbers.tolist()).data)
    x_VTPSS = crop_and_resize(frames_NPHW, places.reshape(params.frames.shape), params, spec.size)
    if spec.modality == "difference":
        x_VTPSS = x_VTPSS.float().diff(dim=1)
    x_FPSS = x_VTPSS.flatten(0, 1)
    if jitter is not None:
        coloured = jittered(jitter, x_FPSS, spec)
    else:
        coloured = recolour(cube_root_xyz(x_FPSS) if spec.lab else x_FPSS.float(), params)
    if spec.channel_drop:
        coloured = fill_dropped(coloured, params, spec)
    return coloured.unflatten(0, (spec.views, spec.frames)).transpose(1, 2)


def crop_and_resize(frames_NPHW: Tensor, places_VT: np.ndarray, params: ViewParams, size: int) -> Tensor:
    """Crop, scale, mirror and turn: (V, T, P, S, S) uint8; views that look alike are made together."""
    looks: dict[tuple, list[int]] = defaultdict(list)
    for view, box in enumerate(params.boxes.tolist()):
        looks[(*box, bool(params.flips[view]), float(params.angles[view]))].append(view)
    out = frames_NPHW.new_empty((*places_VT.shape, frames_NPHW.shape[1], size, size))
    for (left, top, width, height, flip, angle), views in looks.items():
        wanted, again = np.unique(places_VT[views], return_inverse=True)
        chosen = F.crop(frames_NPHW, top, left, height, width)[torch.from_numpy(wanted)]
        scaled = F.resize(chosen, [size, size], InterpolationMode.BILINEAR, antialias=True)
        scaled = F.horizontal_flip(scaled) if flip else scaled
        turned = F.rotate(scaled, angle, InterpolationMode.BILINEAR, fill=0) if angle else scaled
        out[views] = turned[torch.from_numpy(again.reshape(len(views), -1))]
    return out


def recolour(x_FPSS: Tensor, params: ViewParams) -> Tensor:
    """The affine map of each frame: (F, C, S, S)."""
    maps = torch.from_numpy(params.colours).flatten(0, 1).to(x_FPSS.device)
    mixed = torch.baddbmm(maps[..., -1:], maps[..., :-1], x_FPSS.flatten(2))
    return mixed.unflatten(2, x_FPSS.shape[2:])


def cube_root_xyz(rgb_F3SS: Tensor) -> Tensor:
    """sRGB uint8 → (f(X), f(Y), f(Z)) of CIE Lab, float32."""
    linear = _LINEAR.to(rgb_F3SS.device)[rgb_F3SS.int()]
    xyz = torch.einsum("cp,fphw->fchw", _XYZ.to(linear), linear)
    return torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp(min=1e-6) ** (1 / 3), xyz * ((29 / 6) ** 2 / 3) + 4 / 29
    )


def fill_dropped(x_F3SS: Tensor, params: ViewParams, spec: ViewSpec) -> Tensor:
    """Noise of 1/100 of the kept channel's deviation in the channels that are dropped (TCP)."""
    assert params.noise is not None
    dropped_F3 = torch.from_numpy((params.colours == 0).all(-1).reshape(-1, 3)).to(x_F3SS.device)
    parts = {"frame": len(x_F3SS), "view": spec.views, "clip": 1}[spec.colour_scope]
    by_part = x_F3SS.unflatten(0, (parts, -1))
    kept = (
        by_part.square().mean((1, 3, 4)) - by_part.mean((1, 3, 4)).square()
    )  # the dropped ones' variance is 0
    deviation = kept.sum(1).clamp(min=0).sqrt().repeat_interleave(len(x_F3SS) // parts)
    noise = noise_bank(spec.size).to(x_F3SS.device)[torch.from_numpy(params.noise).flatten()]
    strength_F3 = dropped_F3 * deviation[:, None] * (0.01 / arithmetic.NOISE_SCALE)
    return x_F3SS + noise * strength_F3[..., None, None]


def color_jitter(spec: ViewSpec) -> nn.Module | None:
    """Colour as users write it: torchvision's ColorJitter, RandomGrayscale and Normalize, not our spec's colours.

    uint8 (…, 3, S, S) → float32; None where the spec has no jitter.
    """
    jitter = spec.jitter
    if jitter is None or spec.modality != "rgb":
        return None
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    mean, std = colour.IMAGENET_MEAN.tolist(), colour.IMAGENET_STD.tolist()
    if spec.levels == "bgr-255":
        mean, std = [0.0] * 3, [1 / 255] * 3
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*strengths)], p=jitter.probability),
            v2.RandomGrayscale(jitter.grey),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def jittered(transform: nn.Module, x_FPSS: Tensor, spec: ViewSpec) -> Tensor:
    """Frames (F, 3, S, S) uint8 → float32; those that share their colours go through the transform together."""
    scope_F = spec.scope(spec.colour_scope).ravel()
    out = torch.empty_like(x_FPSS, dtype=torch.float32)
    for one in np.unique(scope_F):
        frames = torch.from_numpy(np.flatnonzero(scope_F == one))
        out[frames] = transform(x_FPSS[frames])
    return out


@cache
def noise_bank(size: int) -> Tensor:
    """(NOISE_FRAMES, 3, S, S) int8."""
    return torch.from_numpy(arithmetic.noise_bank(NOISE_FRAMES, size)).permute(0, 3, 1, 2)


def levels(spec: ViewSpec) -> Tensor:
    """(C, 1, 1, 1): how many 8-bit levels a difference of 1 in the model's input is; L of Lab counts 0–100 as 0–255."""
    if spec.modality == "flow":
        of_channel = np.full(3, 127.5)
    elif spec.modality == "difference":
        of_channel = np.array([255 * colour.GREY_STD])
    elif spec.lab:
        of_channel = colour.LAB_STD * [2.55, 1, 1]
    else:
        of_channel = 255 * colour.IMAGENET_STD if spec.levels == "imagenet" else np.ones(3)
    return torch.tensor(of_channel, dtype=torch.float32)[:, None, None, None]


def mean_difference(ours: Tensor, theirs: Tensor, spec: ViewSpec) -> float:
    """Mean absolute difference of two batches (B, V, C, T, S, S), in 8-bit levels."""
    return float(((ours.cpu() - theirs.cpu()).abs() * levels(spec)).mean())
