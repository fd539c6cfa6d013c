"""The peer of those who know DALI: its WebDataset reader and its random operators, no spec.

It sees other frames, boxes and colours than ours, of the same kinds: what a user of DALI would write from the paper.
"""

from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from benchmarks.loader.parts import WARM, Options
from benchmarks.loader.rounds import Figures, Part, Source, rate
from pipelines.sampling import sample_params
from pipelines.transforms.dali import cube_root_xyz, difference, luma, rotate, u_and_v
from pipelines.views import ViewSpec, eval_view
from shards import InputError

CPU_CODECS = ("vp9", "mjpeg")


def dali_readers(source: Source, options: Options, batches: int) -> Part:
    """Raises InputError where DALI's own decoder cannot read the data here."""
    codec = source.dataset.info["settings"].get("codec", "h264")
    on_gpu = "nvdec" in options.kind.timed
    if not on_gpu and codec not in CPU_CODECS:
        raise InputError(
            f"--against dali-readers: DALI's own decoder reads {codec} on NVDEC only, which this run does not use "
            f"(on a CPU it reads {' and '.join(CPU_CODECS)})"
        )
    device_id = torch.cuda.current_device() if on_gpu else None
    pipeline = Pipeline(source.batch_size, options.threads, device_id, seed=source.seed)
    with pipeline:
        pipeline.set_outputs(define(source, decoder="mixed" if on_gpu else "cpu"))
    pipeline.build()

    def run() -> torch.Tensor:
        views: torch.Tensor = torch.from_dlpack(pipeline.run()[0].as_tensor())
        return views.to(options.device, non_blocking=True)

    def part(_: int) -> Figures:
        for _ in range(WARM + 1):  # one more is ready in DALI's own queue
            run()
        return rate(run, batches, source.batch_size, options.device)

    return part


def define(source: Source, decoder: str = "mixed") -> Any:
    """The graph's output (V, C, T, S, S) float32; inside a pipeline scope."""
    spec, dataset = source.spec, source.dataset
    tars = [str(dataset.path / name) for name in dataset.shards]
    encoded = fn.readers.webdataset(
        paths=tars,
        index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
        ext=[source.spec.component],
        random_shuffle=True,
        initial_fill=min(len(dataset), 256),
        missing_component_behavior="skip",
        name="reader",
    )
    numbers = _frame_numbers(spec, int(dataset.column("num_frames").min()))
    video = fn.decoders.video(encoded, device=decoder, frames=numbers, pad_mode="edge")
    if spec.modality == "flow":
        video = fn.reshape(video, rel_shape=[2.0, 0.5, 1.0, 1.0], layout="FHWC")
    views = []
    for v in range(spec.views):
        if spec.box_scope == "view" or not v:
            box, turn = _geometry(spec)
        views.append(_view(spec, video, v, box, turn))
    return fn.stack(*views)


def _frame_numbers(spec: ViewSpec, shortest: int) -> Any:
    """V·T frame numbers; the graph does not know a video's length, so clips begin where the shortest one lasts."""
    offsets = spec.decoded_offsets.astype(np.float32)
    room = float(max(shortest - spec.span + 1, 1))
    if not spec.starts_differ:
        start = fn.random.uniform(range=[0.0, room])
        return fn.cast(types.Constant(offsets.ravel()) + _floor(start), dtype=types.INT32)
    numbers = []
    for row in offsets:
        places = types.Constant(row)
        if spec.paces:
            places = _floor(places * fn.random.uniform(values=list(spec.paces)))
        numbers.append(places + _floor(fn.random.uniform(range=[0.0, room])))
    return fn.cast(fn.cat(*numbers), dtype=types.INT32)


def _floor(node: Any) -> Any:
    return fn.cast(fn.cast(node, dtype=types.INT32), dtype=types.FLOAT)


def _geometry(spec: ViewSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random arguments of a crop, and flip and angle."""
    box: dict[str, Any] = {"seed": int(np.random.default_rng(len(spec.offsets)).integers(2**31))}
    if spec.crop:
        box = {f"crop_pos_{axis}": fn.random.uniform(range=[0.0, 1.0]) for axis in "xy"}
    turn = {"flip": fn.random.coin_flip(probability=spec.flip)}
    if spec.rotation:
        turn["angle"] = fn.random.uniform(range=[-spec.rotation, spec.rotation])
    return box, turn


def _view(spec: ViewSpec, video: Any, v: int, box: dict[str, Any], turn: dict[str, Any]) -> Any:
    per_view = spec.decoded * (2 if spec.modality == "flow" else 1)
    frames = video[v * per_view : (v + 1) * per_view]
    if spec.crop:
        short = round(spec.size / spec.crop)
        frames = fn.resize(frames, resize_shorter=short, interp_type=types.INTERP_LINEAR, antialias=True)
        frames = fn.crop(frames, crop=[spec.size, spec.size], **box)
    else:
        frames = fn.random_resized_crop(
            frames,
            size=[spec.size, spec.size],
            random_area=list(spec.area),
            random_aspect_ratio=[max(spec.ratio[0], 0.1), min(spec.ratio[1], 10.0)],
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            **box,
        )
    frames = fn.flip(frames, horizontal=turn["flip"])
    if "angle" in turn:
        frames = rotate(frames, turn["angle"])
    return fn.transpose(_coloured(spec, frames), perm=[3, 0, 1, 2], output_layout="CFHW")


def _coloured(spec: ViewSpec, frames: Any) -> Any:
    if spec.modality == "flow":
        order = np.arange(2 * spec.frames).reshape(-1, 2).T.ravel()  # u of each frame, then v of each
        frames = u_and_v(fn.sequence_rearrange(frames, new_order=order.tolist()), spec.frames)
    if spec.modality == "difference":
        frames = difference(luma(frames), 1, spec.size)
    if spec.lab:
        frames = cube_root_xyz(frames)
    if spec.jitter is not None and spec.modality == "rgb":
        frames = fn.color_twist(frames, **_jitter(spec))
    row = np.array([0])
    still = sample_params(eval_view(spec), row, row + spec.span, row + 256, row + 256, seed=0, epoch=0)
    return fn.coord_transform(frames, MT=still.colours[0, 0, 0].ravel().tolist(), dtype=types.FLOAT)


def _jitter(spec: ViewSpec) -> dict[str, Any]:
    jitter = spec.jitter
    assert jitter is not None
    shape = {"shape": [spec.frames]} if spec.colour_scope == "frame" else {}

    def factor(low: float, high: float) -> Any:
        params = fn.random.uniform(range=[low, high], **shape)
        return fn.per_frame(params) if shape else params

    strengths = {name: getattr(jitter, name) for name in ("brightness", "contrast", "saturation")}
    factors = {name: factor(max(1 - x, 0.0), 1 + x) for name, x in strengths.items()}
    return factors | {"hue": factor(-360 * jitter.hue, 360 * jitter.hue)}
