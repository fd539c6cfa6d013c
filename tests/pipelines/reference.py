"""What the tests compare with: videos made for the purpose, and views computed from parameters without DALI or swscale."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipelines.backends import BackendSettings
from pipelines.backends.base import Backend, Video
from pipelines.backends.cpu import CpuBackend, Frames
from pipelines.loader import Loader
from pipelines.sampler import Sample, TrainSampler
from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec
from shards import Dataset
from shards.table import publish
from shards.tar import Sample as Packed
from shards.tar import write_shard
from shards.video.encode import Encoding, write_mp4

REAL = Path(__file__).parents[3] / "shared" / "data" / "ut-interaction"
NUMBER_BITS = 8


def params_for(
    spec: ViewSpec, dataset: Dataset, rows: Iterable[int], *, seed: int = 0, epoch: int = 0
) -> ViewParams:
    chosen = np.array(list(rows), dtype=np.int64)
    columns = (dataset.column(name)[chosen].astype(np.int64) for name in ("num_frames", "width", "height"))
    return sample_params(spec, chosen, *columns, seed=seed, epoch=epoch)


def loader(
    dataset: Dataset,
    spec: ViewSpec,
    *,
    rows: Iterable[int] | None = None,
    batch_size: int = 4,
    seed: int = 1,
    rank: int = 0,
    world: int = 1,
    clips: int = 1,
    window: int | None = None,
    backend: str | Backend = "cpu",
    prefetch: int = 2,
    device: torch.device | None = None,
    **settings: Any,
) -> Loader:
    """A training loader of all rows, or of these. settings: the backend's; a GPU's part is played by DALI on the CPU."""
    chosen = np.arange(len(dataset)) if rows is None else np.array(list(rows), np.int64)
    sampler = TrainSampler(
        dataset, chosen, spec, batch_size, seed=seed, rank=rank, world=world, clips=clips, window=window
    )
    if isinstance(backend, str):
        options: dict[str, Any] = {"on_cpu_dali": True} | settings
        given: BackendSettings | Backend = BackendSettings(backend, **options)
    else:
        given = backend
    return Loader(dataset, sampler, given, prefetch=prefetch, device=device, quarantine=True)


class Encoded(Video):
    """A video that lies in memory."""

    def __init__(self, data: bytes) -> None:
        self.row, self._data = 0, data

    def read(self) -> bytes:
        return self._data

    def read_frames(self, numbers: NDArray[np.integer]) -> bytes:
        return self._data


def made(kind: str, spec: ViewSpec, samples: int, clips: int = 1, *, device: int | None = None) -> Backend:
    """A backend: cpu, hybrid, gpu, or memory, which renders Frames. device: the GPU; None for DALI on the CPU."""
    if kind == "cpu":
        return CpuBackend(spec, samples, clips)
    from pipelines.backends.gpu import HybridBackend, MemoryBackend, NvdecBackend

    kinds = {"hybrid": HybridBackend, "gpu": NvdecBackend, "memory": MemoryBackend}
    return kinds[kind](spec, samples, clips, BackendSettings(on_cpu_dali=device is None))


def render(backend: Backend, params: list[ViewParams], inputs: list[Any]) -> torch.Tensor:
    """The views of samples. inputs: of each the encoded video, or the pixels that decode_views gave, or whole Frames."""
    samples, prepared = [], []
    for slot, one in enumerate(params):
        clips = len(one.frames) // backend.spec.views
        samples.append(Sample(np.full(clips, slot), slot, one, clips, slot))
    for sample, given, out in zip(samples, inputs, backend.buffer(samples), strict=True):
        if isinstance(given, bytes):
            given = backend.prepare(Encoded(given), sample, out)
        elif isinstance(given, Frames):
            given = given.take(np.unique(sample.params.frames))
        elif isinstance(given, np.ndarray):
            given = backend.accept(given, sample.params, out)  # type: ignore[attr-defined]
        prepared.append(given)
    return backend.render(samples, prepared)()


def flow_video(path: Path, fields_T2HW: NDArray[np.uint8], codec: Literal["h264", "vp9"] = "h264") -> bytes:
    """Fields of (u, v) levels as the component flow.mp4: u above v in full-range luma, grey chroma."""

    def pictures() -> Iterator[av.VideoFrame]:
        for field in fields_T2HW:
            luma = np.concatenate(list(field))
            planes = np.concatenate([luma.ravel(), np.full(luma.size // 2, 128, np.uint8)])
            frame = av.VideoFrame.from_ndarray(
                planes.reshape(luma.shape[0] * 3 // 2, luma.shape[1]), "yuv420p"
            )
            frame.color_range = ColorRange.JPEG
            yield frame

    write_mp4(pictures(), path, Fraction(25), Encoding(codec=codec, crf=4, preset="veryfast"))
    return path.read_bytes()


def write_dataset(
    out: Path,
    videos: list[bytes],
    facts: list[dict],
    *,
    per_shard: int | None = None,
    flows: list[bytes | None] | None = None,
) -> Path:
    """A data set of these videos, in one shard or several, with keys v000, v001, …"""
    out.mkdir(parents=True)
    samples = [
        Packed(f"v{n:03d}", video, f, 0, flows[n] if flows else None)
        for n, (video, f) in enumerate(zip(videos, facts, strict=True))
    ]
    step = per_shard or len(samples)
    parts = [samples[first : first + step] for first in range(0, len(samples), step)]
    shards = [write_shard(out, f"{out.name}-{n:06d}", part) for n, part in enumerate(parts)]
    publish(out, ["only"], shards, {}, name=out.name)
    return out


def numbered_video(path: Path, frames: int, *, gop: int = 16, b_frames: int = 2) -> bytes:
    """128×64, 25 frames/s: frame n shows n in binary, eight bars from left (lowest bit) to right."""

    def pictures() -> Iterator[av.VideoFrame]:
        for n in range(frames):
            bits = (n >> np.arange(NUMBER_BITS)) & 1
            luma = np.tile(np.repeat(np.where(bits, 235, 16), 128 // NUMBER_BITS).astype(np.uint8), (64, 1))
            planes = np.concatenate([luma.ravel(), np.full(64 * 64, 128, np.uint8)])
            yield av.VideoFrame.from_ndarray(planes.reshape(96, 128), "yuv420p")

    encoding = Encoding(short_side=64, gop=gop, preset="veryfast", b_frames=b_frames)
    write_mp4(pictures(), path, Fraction(25), encoding)
    return path.read_bytes()


def read_numbers(views: NDArray[np.uint8]) -> list[int]:
    """The numbers that frames (F, S, S, 3) of a numbered video show, cut from the whole frame."""
    side = views.shape[1]
    middles = ((np.arange(NUMBER_BITS) + 0.5) * side / NUMBER_BITS).astype(int)
    bright = views[:, side // 2, middles].mean(-1) > 127
    return [int((row << np.arange(NUMBER_BITS)).sum()) for row in bright]


def yuv_planes(video: bytes) -> list[tuple[NDArray[np.uint8], ...]]:
    """(Y, U, V) of every frame of a yuv420p video, decoded from first to last."""
    out = []
    with av.open(io.BytesIO(video)) as container:
        for frame in container.decode(video=0):
            assert frame.format.name in ("yuv420p", "yuvj420p")
            planes = []
            for plane in frame.planes:
                padded = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                planes.append(padded[:, : plane.width].copy())
            out.append(tuple(planes))
    return out


def scaled_part(plane: NDArray, box: tuple[int, int, int, int], size: int) -> NDArray[np.float64]:
    """The box (left, top, width, height) of a plane, scaled to size²."""
    x, y, w, h = box
    part = torch.from_numpy(plane[y : y + h, x : x + w].astype(np.float32))[None]
    return F.resize(part, [size, size], antialias=True)[0].double().numpy()


def decoded_luma(
    video: bytes, params: ViewParams, size: int, *, full: bool = False, planes: int = 1
) -> NDArray:
    """The views' grey levels (V·T, size, size, planes), 0–255; planes lie below each other in the video."""
    whole = [luma for luma, _, _ in yuv_planes(video)]
    height = whole[0].shape[0] // planes
    out = []
    for view in range(params.frames.shape[0]):
        left, top, w, h = params.boxes[view].tolist()
        for number in params.frames[view].tolist():
            parts = [scaled_part(whole[number], (left, top + p * height, w, h), size) for p in range(planes)]
            levels = np.stack(parts, -1) if full else (255 / 219 * (np.stack(parts, -1) - 16)).clip(0, 255)
            out.append(levels[:, ::-1] if params.flips[view] else levels)
    return np.stack(out)


def decoded_views(video: bytes, params: ViewParams, size: int) -> NDArray[np.float64]:
    """The views' RGB (V·T, size, size, 3), 0–255, before rotation and colour, in floating point."""
    planes = yuv_planes(video)
    out = []
    for view in range(params.frames.shape[0]):
        for number in params.frames[view].tolist():
            left, top, width, height = params.boxes[view].tolist()
            scaled = []
            for plane, step in zip(planes[number], (1, 2, 2), strict=True):
                box = (left // step, top // step, width // step, height // step)
                scaled.append(scaled_part(plane, box, size))
            luma, cb, cr = 255 / 219 * (scaled[0] - 16), *(255 / 224 * (s - 128) for s in scaled[1:])
            # BT.601: R − Y = 2 (1 − 0.299) Cr, B − Y = 2 (1 − 0.114) Cb, and Y = 0.299 R + 0.587 G + 0.114 B
            red, blue = luma + 1.402 * cr, luma + 1.772 * cb
            green = (luma - 0.299 * red - 0.114 * blue) / 0.587
            rgb = np.stack([red, green, blue], -1).clip(0, 255)
            out.append(rgb[:, ::-1] if params.flips[view] else rgb)
    return np.stack(out)


def turned(frame_HWC: NDArray, angle: float) -> NDArray[np.float64]:
    """The frame turned counter-clockwise by `angle` degrees: bilinear, black beyond the edge."""
    frame = torch.from_numpy(np.asarray(frame_HWC, dtype=np.float32)).permute(2, 0, 1)
    out = F.rotate(frame, angle, interpolation=InterpolationMode.BILINEAR, fill=0)
    return out.permute(1, 2, 0).double().numpy()


def disc(size: int, margin: float = 2) -> NDArray[np.bool_]:
    """(size, size): the pixels that stay inside the frame however it is turned."""
    across = np.arange(size) - (size - 1) / 2
    return np.hypot(across[:, None], across) < size / 2 - margin


def lab(rgb: NDArray) -> NDArray[np.float64]:
    """sRGB 0–255 (…, 3) → CIE 1976 L*a*b*, D65; coefficients as Lindbloom prints them."""
    v = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    x = linear @ [0.4124564, 0.3575761, 0.1804375] / 0.95047
    y = linear @ [0.2126729, 0.7151522, 0.0721750]
    z = linear @ [0.0193339, 0.1191920, 0.9503041] / 1.08883
    f = [np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], -1)


def assert_same_params(one: ViewParams, other: ViewParams) -> None:
    for name in ("frames", "boxes", "flips", "angles", "colours", "noise", "pace"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
