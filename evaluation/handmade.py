"""Features made by hand, of the clips that a network is shown, in grey and small: a baseline.

They are kept in the cache by this file's sha256: whoever changes it has them computed again.
Letters: B clips, V views, T frames a view, P pairs of consecutive frames, H W pixels, D features.
"""

from concurrent.futures import ThreadPoolExecutor
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
from evaluation.features import Features, extract
from evaluation.metrics import Split
from pipelines import colour
from pipelines.eval_clips import EvalClips, EvalLayout
from pipelines.views import ViewSpec
from training.speed import cores, share

cv2: Any = import_module("cv2") if find_spec("cv2") else None  # OpenCV is an extra
SIZE, CELLS, DIRECTIONS = 64, 2, 8


def handmade(context: Context, splits: list[Split]) -> tuple[Features, Features]:
    """Of all training and of all test videos."""
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
    with ThreadPoolExecutor(share(cores())) as pool:  # most of the time is flow's, which releases the GIL
        return torch.from_numpy(np.stack(list(pool.map(_of_clip, grey_BVTHW))).astype(np.float32))


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
        parts.append(np.histogram(one, DIRECTIONS, (-np.pi, np.pi), weights=lengths)[0] / lengths.size)
        parts.append(np.histogram(two, 4, (-np.pi / 2, np.pi / 2), weights=all_lengths)[0] / lengths.size)
    if cv2 is not None:
        parts.append(_flow((grey_VTHW * 255).astype(np.uint8)))
    return np.concatenate(parts)


def _flow(grey_VTHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow_PHW2 = [search.calc(one, two, None) for view in grey_VTHW for one, two in pairwise(view)]
    x_PHW, y_PHW = np.moveaxis(np.stack(flow_PHW2), -1, 0)
    speed, direction = np.hypot(x_PHW, y_PHW), np.arctan2(y_PHW, x_PHW)
    parts = [_directions(*cell) for cell in zip(_cells(direction), _cells(speed), strict=True)]
    flat = speed.reshape(len(speed), -1)
    levels = [flat.mean(1), flat.std(1), *np.percentile(flat, (50, 95), axis=1)]
    found = np.concatenate([*parts, np.stack(levels, 1)], 1)
    return np.concatenate([found.mean(0), found.std(0)])


def _directions(angle_PHW: NDArray, weight_PHW: NDArray) -> NDArray[np.float64]:
    """(P, 8) a weighted histogram of each pair's angles, −π to π, over the number of pixels."""
    P = len(angle_PHW)
    bins = ((angle_PHW + np.pi) * (DIRECTIONS / (2 * np.pi))).astype(np.intp).clip(0, DIRECTIONS - 1)
    bins += DIRECTIONS * np.arange(P)[:, None, None]
    counts = np.bincount(bins.ravel(), weight_PHW.ravel(), DIRECTIONS * P)
    return counts.reshape(P, DIRECTIONS) / angle_PHW[0].size


def _cells(values: NDArray) -> list[NDArray]:
    """The quarters of the picture, whose sides are the last two."""
    return [cell for row in np.array_split(values, CELLS, -2) for cell in np.array_split(row, CELLS, -1)]
