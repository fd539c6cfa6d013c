"""The peer of those who know DALI: its WebDataset reader and its random operators, no plan.

It sees other frames, boxes and colours than ours, of the same kinds: what a user of DALI would write from the paper.
"""

from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from pipelines import augment, colour
from pipelines.plan import ViewPlan
from shards import InputError

from .parts import WARM, Way
from .rounds import Figures, Part, rate
from .source import Source

CPU_CODECS = ("vp9", "mjpeg")


def dali_readers(source: Source, way: Way, batches: int) -> Part:
    """Raises InputError where DALI's own decoder cannot read the data here."""
    codec = source.dataset.info["settings"].get("codec", "h264")
    on_gpu = way.placement == "gpu"
    if not on_gpu and codec not in CPU_CODECS:
        raise InputError(
            f"--against dali-readers: DALI's own decoder reads {codec} on NVDEC only, which this run does not use "
            f"(on a CPU it reads {' and '.join(CPU_CODECS)})"
        )
    device_id = torch.cuda.current_device() if on_gpu else None
    pipeline = Pipeline(source.batch_size, way.threads, device_id, seed=source.seed)
    with pipeline:
        pipeline.set_outputs(define(source, decoder="mixed" if on_gpu else "cpu"))
    pipeline.build()

    def run() -> torch.Tensor:
        views: torch.Tensor = torch.from_dlpack(pipeline.run()[0].as_tensor())
        return views.to(way.device, non_blocking=True)

    def part(_: int) -> Figures:
        for _ in range(WARM + 1):  # one more is ready in DALI's own queue
            run()
        return rate(run, batches, source.batch_size, way.device)

    return part


def define(source: Source, decoder: str = "mixed") -> Any:
    """The graph's output (V, C, T, S, S) float32; inside a pipeline scope."""
    plan, dataset = source.plan, source.dataset
    tars = [str(dataset.path / name) for name in dataset.shards]
    encoded = fn.readers.webdataset(
        paths=tars,
        index_paths=[tar.removesuffix(".tar") + ".idx" for tar in tars],
        ext=[source.component],
        random_shuffle=True,
        initial_fill=min(len(dataset), 256),
        missing_component_behavior="skip",
        name="reader",
    )
    numbers = _frame_numbers(plan, int(dataset.column("num_frames").min()))
    video = fn.decoders.video(encoded, device=decoder, frames=numbers, pad_mode="edge")
    if plan.modality == "flow":
        video = fn.reshape(video, rel_shape=[2.0, 0.5, 1.0, 1.0], layout="FHWC")
    box, turn = _box(plan), _turn(plan)
    views = []
    for v in range(plan.views):
        if plan.box_scope == "view" and v:
            box, turn = _box(plan), _turn(plan)
        views.append(_view(plan, video, v, box, turn))
    return fn.stack(*views)


def _frame_numbers(plan: ViewPlan, shortest: int) -> Any:
    """V·T frame numbers; the graph does not know a video's length, so clips begin where the shortest one lasts."""
    offsets = np.asarray(plan.offsets, dtype=np.float32)
    if plan.modality == "difference":
        offsets = np.concatenate([offsets, offsets[:, -1:] + 1], axis=1)
    room = float(max(shortest - plan.span + 1, 1))
    if not plan.paces:
        start = fn.random.uniform(range=[0.0, room])
        return fn.cast(types.Constant(offsets.ravel()) + math_floor(start), dtype=types.INT32)
    numbers = []
    for row in offsets:
        pace = fn.random.uniform(values=list(plan.paces))
        numbers.append(
            math_floor(types.Constant(row) * pace) + math_floor(fn.random.uniform(range=[0.0, room]))
        )
    return fn.cast(fn.cat(*numbers), dtype=types.INT32)


def math_floor(node: Any) -> Any:
    return fn.cast(fn.cast(node, dtype=types.INT32), dtype=types.FLOAT)


def _box(plan: ViewPlan) -> dict[str, Any]:
    """Arguments of a crop; a share of the shorter side, or a share of the area."""
    if plan.crop:
        return {
            "crop_pos_x": fn.random.uniform(range=[0.0, 1.0]),
            "crop_pos_y": fn.random.uniform(range=[0.0, 1.0]),
        }
    return {"seed": int(np.random.default_rng(len(plan.offsets)).integers(2**31))}


def _turn(plan: ViewPlan) -> dict[str, Any]:
    turn = {"flip": fn.random.coin_flip(probability=plan.flip)}
    if plan.rotation:
        turn["angle"] = fn.random.uniform(range=[-plan.rotation, plan.rotation])
    return turn


def _view(plan: ViewPlan, video: Any, v: int, box: dict[str, Any], turn: dict[str, Any]) -> Any:
    first, end = v * plan.decoded, (v + 1) * plan.decoded
    if plan.modality == "flow":
        frames = video[2 * first : 2 * end]
    else:
        frames = video[first:end]
    if plan.crop:
        short = round(plan.size / plan.crop)
        frames = fn.resize(frames, resize_shorter=short, interp_type=types.INTERP_LINEAR, antialias=True)
        frames = fn.crop(frames, crop=[plan.size, plan.size], **box)
    else:
        frames = fn.random_resized_crop(
            frames,
            size=[plan.size, plan.size],
            random_area=list(plan.area),
            random_aspect_ratio=[max(plan.ratio[0], 0.1), min(plan.ratio[1], 10.0)],
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            **box,
        )
    frames = fn.flip(frames, horizontal=turn["flip"])
    if "angle" in turn:
        frames = augment.rotate(frames, turn["angle"])
    return fn.transpose(_coloured(plan, frames), perm=[3, 0, 1, 2], output_layout="CFHW")


def _coloured(plan: ViewPlan, frames: Any) -> Any:
    if plan.modality == "flow":
        pair = fn.cast(frames[:, :, :, 0:1], dtype=types.FLOAT) / 127.5 - 1.0
        pair = fn.reshape(pair, shape=[plan.frames, 2, plan.size, plan.size], layout="FCHW")
        pair = fn.transpose(pair, perm=[0, 2, 3, 1], output_layout="FHWC")
        return fn.cat(pair, pair[:, :, :, 0:1] * 0.0, axis=3)
    if plan.modality == "difference":
        grey = fn.cast(
            fn.color_space_conversion(frames, image_type=types.RGB, output_type=types.GRAY), dtype=types.FLOAT
        )
        return (grey[1:] - grey[:-1]) / (255 * colour.GREY_STD)
    if plan.lab:
        return (augment.cube_root_xyz(frames) - 0.5) * 4.0
    if plan.jitter is not None:
        frames = fn.color_twist(frames, **_jitter(plan))
    mean, std = 255 * colour.IMAGENET_MEAN, 255 * colour.IMAGENET_STD
    if plan.levels == "bgr-255":
        mean, std = np.zeros(3), np.ones(3)
    return (fn.cast(frames, dtype=types.FLOAT) - types.Constant(mean.astype(np.float32))) / types.Constant(
        std.astype(np.float32)
    )


def _jitter(plan: ViewPlan) -> dict[str, Any]:
    jitter = plan.jitter
    assert jitter is not None
    shape = {"shape": [plan.frames]} if plan.colour_scope == "frame" else {}

    def factor(low: float, high: float) -> Any:
        drawn = fn.random.uniform(range=[low, high], **shape)
        return fn.per_frame(drawn) if shape else drawn

    strengths = {name: getattr(jitter, name) for name in ("brightness", "contrast", "saturation")}
    factors = {name: factor(max(1 - x, 0.0), 1 + x) for name, x in strengths.items()}
    return factors | {"hue": factor(-360 * jitter.hue, 360 * jitter.hue)}
