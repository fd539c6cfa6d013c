"""The DALI graph in its placements, and the batch it makes.

    gpu     bytes → NVDEC → box, flip, rotation, colour on the GPU
    hybrid  PyAV decodes, cuts and scales on the CPU; rotation and colour on the GPU
    cpu     PyAV decodes, cuts and scales; rotation and colour in NumPy (pipelines.painter), without DALI

    memory  decoded frames that lie in GPU memory (--cache gpu) → the same as gpu, without its decoder

The graph has no random operator and no state: its inputs are a batch's spec and the videos' bytes (gpu), the views'
pixels (hybrid, cpu), or the videos' frames (memory).
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from pipelines import augment, colour
from pipelines.painter import Painter
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.views import ViewSpec
from shards import InputError

Placement = Literal["gpu", "hybrid", "cpu"]
Way = Literal[
    "gpu", "hybrid", "cpu", "memory"
]  # of a sample through the graph: the placement's, or the cache's


def choose_placement(name: str) -> Placement:
    """Resolve "auto" and check what was asked for; raises InputError where the machine cannot do it.

    auto: gpu where there is a GPU whose video decoder can be reached, hybrid where only the GPU can, else cpu.
    """
    if name not in ("auto", *get_args(Placement)):
        raise InputError(f"--device {name}: choose one of auto, {', '.join(get_args(Placement))}")
    cuda, nvdec = torch.cuda.is_available(), _has_nvdec()
    if name == "auto":
        return "cpu" if not cuda else "gpu" if nvdec else "hybrid"
    if name != "cpu" and not cuda:
        raise InputError(f"--device {name}: no CUDA GPU is visible here; use --device cpu")
    if name == "gpu" and not nvdec:
        raise InputError(
            "--device gpu: libnvcuvid.so.1 cannot be loaded, so NVDEC is out of reach. In a container the driver's "
            "*video* capability must be exposed (NVIDIA_DRIVER_CAPABILITIES=compute,utility,video); "
            "or decode on the CPU with --device hybrid"
        )
    return name  # type: ignore[return-value]


def _has_nvdec() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True


def define(spec: ViewSpec, way: Way, decoder: str = "mixed", clips: int = 1) -> Any:
    """The graph's output node, float32 FHWC with F = clips·V·T; to be called inside a DALI pipeline scope.

    decoder: the device of decoders.video; "mixed" is NVDEC, "cpu" serves tests (VP9 and MJPEG only; and frames that
    lie in the computer's own memory). clips: how many clips of the spec a sample has: see draw.sample_clip_params.
    """
    if clips > 1:
        spec = replace(spec, offsets=spec.offsets * clips, groups=())
    colours = fn.external_source(name="colours", dtype=types.FLOAT, ndim=3)
    angles = fn.external_source(name="angles", dtype=types.FLOAT, ndim=1) if spec.rotation else None
    from_frames = way in ("gpu", "memory")
    cut = _cut_views_gpu(spec, way, decoder) if from_frames else _cut_views_cpu(spec, decoder, angles)
    if isinstance(cut, list):
        turned = cut if angles is None else [augment.rotate(view, angles[v]) for v, view in enumerate(cut)]
        cut = fn.cat(*turned, axis=0) if len(turned) > 1 else turned[0]
    if spec.modality == "difference":
        grey = augment.luma(cut) if from_frames else cut
        cut = augment.difference(grey, spec.views, spec.size)
    coloured = augment.recolour(augment.cube_root_xyz(cut) if spec.lab else cut, colours)
    return _fill_dropped(spec, coloured, clips) if spec.channel_drop else coloured


def _cut_views_cpu(spec: ViewSpec, decoder: str, angles: Any) -> Any:
    """The frames that PyAV has cut: all in one node, or a list of views where each has to be turned."""
    planes = fn.external_source(name="pixels", dtype=types.UINT8, layout="FCHW")
    frames = fn.transpose(planes if decoder == "cpu" else planes.gpu(), perm=[0, 2, 3, 1])
    if angles is None:
        return frames
    return [frames[v * spec.decoded : (v + 1) * spec.decoded] for v in range(spec.views)]


def _cut_views_gpu(spec: ViewSpec, way: Way, decoder: str) -> list[Any]:
    order = fn.external_source(name="order", dtype=types.INT32, ndim=2)  # (V, T) places in the frames
    boxes = fn.external_source(name="boxes", dtype=types.FLOAT, ndim=2)
    flips = fn.external_source(name="flips", dtype=types.INT32, ndim=1)
    cut = _from_memory(spec, decoder) if way == "memory" else _from_video(spec, decoder)
    views = [cut(order[v], boxes[v], flips[v]) for v in range(spec.views)]
    return [augment.u_and_v(view, spec.decoded) for view in views] if spec.modality == "flow" else views


def _from_video(spec: ViewSpec, decoder: str) -> Callable[[Any, Any, Any], Any]:
    """(order, box, flip) of a view → its pixels, RGB, of what NVDEC decodes."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)  # ascending, each once
    video = _pictures(spec, fn.decoders.video(encoded, device=decoder, frames=numbers))
    return lambda order, box, flip: augment.box_and_flip(
        fn.sequence_rearrange(video, new_order=order), box, flip, spec.size
    )


def _from_memory(spec: ViewSpec, decoder: str) -> Callable[[Any, Any, Any], Any]:
    """(order, box, flip) of a view → its pixels, RGB, of 4:2:0 frames; boxes are even, so chroma's are whole pixels."""
    device = "cpu" if decoder == "cpu" else "gpu"
    luma, chroma = (
        _pictures(spec, fn.external_source(name=name, device=device, dtype=types.UINT8, layout="FHWC"))
        for name in ("luma", "chroma")
    )
    to_rgb = fn.external_source(name="to_rgb", dtype=types.FLOAT, ndim=2)

    def cut(order: Any, box: Any, flip: Any) -> Any:
        yuv = [
            augment.box_and_flip(fn.sequence_rearrange(plane, new_order=order), part, flip, spec.size)
            for plane, part in ((luma, box), (chroma, box * 0.5))
        ]
        return fn.coord_transform(fn.cat(*yuv, axis=3), MT=to_rgb, dtype=types.UINT8)

    return cut


def _pictures(spec: ViewSpec, video: Any) -> Any:
    """A video's frames; of flow, a frame of u above v becomes two, at places 2n and 2n + 1."""
    if spec.modality != "flow":
        return video
    return fn.reshape(video, rel_shape=[2.0, 0.5, 1.0, 1.0], layout="FHWC")


def _fill_dropped(spec: ViewSpec, frames: Any, clips: int) -> Any:
    dropped = fn.external_source(name="dropped", dtype=types.FLOAT, ndim=2)
    order = fn.external_source(name="noise_order", dtype=types.INT32, ndim=1)
    bank = fn.external_source(name="noise_bank", dtype=types.INT8, layout="FHWC")
    if frames.device == "gpu":
        dropped, bank = dropped.gpu(), bank.gpu()
    parts = {"frame": spec.views * spec.frames, "view": spec.views, "clip": clips}[spec.colour_scope]
    noise = fn.sequence_rearrange(bank, new_order=order)
    return augment.fill_dropped(frames, dropped, noise, parts)


class Graph:
    """A built graph: run it on the draws and the material of up to `batch_size` samples of `clips` clips each.

    device_id: its GPU; by default the thread's current one, which is the first in every thread but the main one.
    """

    def __init__(
        self,
        spec: ViewSpec,
        batch_size: int,
        way: Way,
        *,
        threads: int,
        decoder: str = "mixed",
        clips: int = 1,
        device_id: int | None = None,
    ) -> None:
        self._spec, self._way, self._clips = spec, way, clips
        self._painter = Painter(spec, batch_size, threads=threads, clips=clips) if way == "cpu" else None
        if self._painter:
            return
        self._noise = augment.noise_bank(NOISE_FRAMES, spec.size) if spec.channel_drop else None
        if decoder == "cpu":
            device_id = None
        elif device_id is None:
            device_id = torch.cuda.current_device()
        self._pipeline = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=1)
        with self._pipeline:
            self._pipeline.set_outputs(define(spec, way, decoder, clips))
        self._pipeline.build()

    def run(self, batch_params: list[ViewParams], material: list[Any]) -> torch.Tensor:
        """Views (B, V, C, T, H, W) float32, in channels-last-3d strides, on the way's device; B counts clips.

        batch_params: one per sample, of its clips' views. material: per sample, for the way gpu the encoded video (bytes,),
        for memory its frames (cache.Resident), else the pixels (V·T, size, size, P), uint8, of decode.decode_views.
        Raises RuntimeError if DALI cannot decode a video; the graph is unusable then.
        """
        if self._painter:
            return self._painter.run(batch_params, material)
        spec, feed = self._spec, self._pipeline.feed_input
        feed("colours", [d.colours.reshape(-1, *d.colours.shape[2:]) for d in batch_params])
        if spec.rotation:
            feed("angles", [d.angles for d in batch_params])
        if spec.channel_drop:
            # a kept channel's row is not all 0: normalisation has an offset
            maps = [d.colours.reshape(-1, 3, 4) for d in batch_params]
            feed("dropped", [(rows == 0).all(-1).astype(np.float32) for rows in maps])
            feed("noise_order", [d.noise.ravel() for d in batch_params if d.noise is not None])
            feed("noise_bank", [self._noise] * len(batch_params), layout="FHWC")
        if self._way in ("gpu", "memory"):
            self._feed_frames(batch_params, material)
        else:
            feed("pixels", [np.ascontiguousarray(p.transpose(0, 3, 1, 2)) for p in material], layout="FCHW")
        frames = torch.from_dlpack(self._pipeline.run()[0].as_tensor())
        shape = (
            len(batch_params) * self._clips,
            spec.views,
            spec.frames,
            spec.size,
            spec.size,
            spec.channels,
        )
        return frames.view(shape).permute(0, 1, 5, 2, 3, 4)

    def close(self) -> None:
        """End its threads, as far as they do not end with it."""
        if self._painter:
            self._painter.close()

    def _feed_frames(self, batch_params: list[ViewParams], material: list[Any]) -> None:
        feed = self._pipeline.feed_input
        numbers, order = zip(*(_places(self._spec, d) for d in batch_params), strict=True)
        feed("order", list(order))
        feed("boxes", [d.boxes.astype(np.float32) for d in batch_params])
        feed("flips", [d.flips.astype(np.int32) for d in batch_params])
        if self._way == "gpu":
            feed("encoded", material)
            feed("numbers", list(numbers))
            return
        with torch.cuda.stream(material[0].stream):
            planes = [video.take(wanted) for video, wanted in zip(material, numbers, strict=True)]
            feed("luma", [luma for luma, _ in planes], layout="FHWC")
            feed("chroma", [chroma for _, chroma in planes], layout="FHWC")
        feed("to_rgb", [colour.rgb_from_yuv(full=video.full_range) for video in material])


def _places(spec: ViewSpec, params: ViewParams) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The frame numbers to decode, each once; and for each view the places of its pictures among them.

    A picture is a frame, or for flow half of one: first all of u, then all of v.
    """
    numbers, places = np.unique(params.frames, return_inverse=True)
    order = places.reshape(params.frames.shape)
    if spec.modality == "flow":
        order = np.concatenate([2 * order, 2 * order + 1], axis=1)
    return numbers, order.astype(np.int32)
