"""What a pretrained network has to beat: random weights, features made by hand, and the videos' size and length.

Letters: B clips, V views, T frames a view, H W pixels, D features.
"""

from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.context import Context, union
from evaluation.data import Split
from evaluation.features import Features, extract
from evaluation.model import RANDOM
from pipelines import colour
from pipelines.eval_clips import EvalClips, EvalLayout
from pipelines.views import ViewSpec

cv2: Any = import_module("cv2") if find_spec("cv2") else None  # OpenCV is an extra
SIZE, CELLS = 64, 2


def features(context: Context, splits: list[Split]) -> dict[str, list[tuple[Features, Features]]]:
    """Baseline → features of the training and of the test videos, several of what is random. Empty with --no-baselines.

    All processes call it together.
    """
    if not context.settings.baselines:
        return {}
    found = {}
    if not context.settings.checkpoint.startswith(RANDOM):
        found["random"] = [
            context.with_random(draw).features(splits) for draw in range(context.settings.random_draws)
        ]
    found["handmade"] = [handmade(context, splits)]
    sizes = size_length(context, union([rows for s in splits for rows in (s.train, s.test)]))
    if sizes:
        found["size_length"] = [(sizes, sizes)]
    return found


def size_length(context: Context, rows: NDArray[np.int64]) -> Features | None:
    """What needs no picture: a video's width, height, number of frames and frame rate; None where none of them varies."""
    names = ("width", "height", "num_frames", "fps")
    x = np.stack([context.dataset.column(name)[rows].astype(np.float32) for name in names], axis=1)
    x = x[:, x.std(0) > 0]
    return Features(x, rows, np.zeros_like(rows), {}) if x.shape[1] else None


def handmade(context: Context, splits: list[Split]) -> tuple[Features, Features]:
    """Features of the clips that the network is shown, in grey and small."""
    spec = hand_spec(context.downstream.spec)
    found = []
    for part in ("train", "test"):
        layout: EvalLayout = replace(getattr(context.downstream, part), crops=1)
        clips = EvalClips.of(context.dataset, union([getattr(s, part) for s in splits]), spec, layout)
        found.append(extract(None, context.dataset, clips, spec, context.compute, "", measure))
    return found[0].by_video(), found[1].by_video()


def hand_spec(spec: ViewSpec) -> ViewSpec:
    """The frames of a method's spec, as small RGB pictures."""
    return replace(spec, modality="rgb", levels="imagenet", size=SIZE)


def measure(views_BVCTHW: Tensor) -> Tensor:
    """RGB normalised as for ImageNet → (B, D): frame differences, space-time gradients, and with OpenCV optical flow.

    Of each quarter of the picture: a histogram of |difference| of consecutive frames in eight bins (0 to 1 in powers of
    two); one of the gradients' directions in eight bins, weighted by their length, and of their slope in time in four;
    of flow (dense inverse search) directions in eight bins weighted by speed, and mean, deviation, median and 95th
    percentile of speed. Flow's mean and deviation over time are given.
    """
    std, mean = (torch.tensor(of).float() for of in (colour.IMAGENET_STD, colour.IMAGENET_MEAN))
    weights = torch.tensor((0.299, 0.587, 0.114))
    rgb = views_BVCTHW.float().cpu().movedim(2, -1) * std + mean
    grey_BVTHW = (rgb @ weights).clamp(0, 1).numpy()
    return torch.from_numpy(np.stack([_of_clip(clip) for clip in grey_BVTHW]).astype(np.float32))


def _of_clip(grey_VTHW: NDArray[np.float32]) -> NDArray[np.float64]:
    grey_VTHW = grey_VTHW if grey_VTHW.shape[1] > 1 else grey_VTHW.reshape(1, -1, *grey_VTHW.shape[2:])
    if grey_VTHW.shape[1] == 1:  # a still: nothing moves
        grey_VTHW = np.repeat(grey_VTHW, 2, axis=1)
    moved = np.abs(np.diff(grey_VTHW, axis=1))
    edges = [0, *2.0 ** np.arange(-7, 0), 1.01]
    parts = [np.histogram(cell, edges)[0] / cell.size for cell in _cells(moved)]
    gt, gy, gx = np.gradient(grey_VTHW, axis=(1, 2, 3))
    length = np.hypot(gx, gy)
    direction, slope = np.arctan2(gy, gx), np.arctan2(gt, length + 1e-6)
    whole = np.sqrt(length**2 + gt**2)
    for one, two, lengths, all_lengths in zip(*map(_cells, (direction, slope, length, whole)), strict=True):
        parts.append(np.histogram(one, 8, (-np.pi, np.pi), weights=lengths)[0] / lengths.size)
        parts.append(np.histogram(two, 4, (-np.pi / 2, np.pi / 2), weights=all_lengths)[0] / lengths.size)
    if cv2 is not None:
        parts.append(_flow((grey_VTHW * 255).astype(np.uint8)))
    return np.concatenate(parts)


def _flow(grey_VTHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found = []
    for view in grey_VTHW:
        for one, two in pairwise(view):
            flow = method.calc(np.ascontiguousarray(one), np.ascontiguousarray(two), None)
            speed, direction = np.hypot(flow[..., 0], flow[..., 1]), np.arctan2(flow[..., 1], flow[..., 0])
            cells = [
                np.histogram(angle, 8, (-np.pi, np.pi), weights=fast)[0] / fast.size
                for angle, fast in zip(_cells(direction), _cells(speed), strict=True)
            ]
            levels = [speed.mean(), speed.std(), np.median(speed), np.percentile(speed, 95)]
            found.append(np.concatenate([*cells, levels]))
    return np.concatenate([np.mean(found, axis=0), np.std(found, axis=0)])


def _cells(values: NDArray) -> list[NDArray]:
    """The quarters of the picture, whose sides are the last two."""
    return [cell for row in np.array_split(values, CELLS, -2) for cell in np.array_split(row, CELLS, -1)]
