"""Augmentation in NumPy, for views that are made on the CPU: decoded pixels → views, sample by sample.

The arithmetic is that of transforms.dali, which runs on a GPU. DALI's own operators for the CPU are scalar code: a
colour map of a 128² frame takes its coord_transform 0.24 ms of a core, and a product of matrices 0.04 (docs/notes/cpu-loader.md).
Letters: F frames of a sample (clips · V · T), n pixels a frame, P planes decoded, C channels of a view, K terms that a
channel is the sum of: planes, noise, and a constant.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import colour
from pipelines.sampling import NOISE, NOISE_FRAMES, ViewParams, generator
from pipelines.views import ViewSpec

NOISE_SCALE = 30  # levels of 8 bits to a deviation
_CHUNK = 16384  # pixels: what is computed of them stays in a core's cache


class NumpyTransform:
    """Turns the pixels of a sample's clips into its views. Threads may share one object."""

    def __init__(self, spec: ViewSpec) -> None:
        self._spec = spec
        if spec.channel_drop:
            bank = noise_bank(NOISE_FRAMES, spec.size).reshape(NOISE_FRAMES, -1, 3)
            self._noise_N3n = np.ascontiguousarray(bank.transpose(0, 2, 1))

    def __call__(self, pixels: NDArray[np.uint8], params: ViewParams, out_FnC: NDArray[np.float32]) -> None:
        """pixels: (F, size, size, P) uint8; fastest where the planes lie apart, as decode.decode_views has them.

        params: of one sample, of its clips' views. out_FnC: where the views go, as the model is fed them.
        """
        spec, n = self._spec, self._spec.size**2
        planes = pixels.transpose(0, 3, 1, 2)
        if spec.rotation:
            planes = _turned(planes, params.angles)
        planes_FPn: NDArray[Any] = planes.reshape(*planes.shape[:2], n)
        if spec.modality == "difference":
            planes_FPn = _differences(planes_FPn, len(params.frames))
        maps_FCK = params.colours.reshape(len(out_FnC), spec.channels, -1)
        noisy = 0  # rows of noise, above the planes and a row of ones
        if params.noise is not None:
            shares_FC3 = self._noise_shares(planes_FPn, maps_FCK, len(params.frames))
            maps_FCK, noisy = np.concatenate([shares_FC3, maps_FCK], -1), 3
        chunk = -(-n // -(-n // _CHUNK))
        rows_Kn = np.ones((maps_FCK.shape[-1], chunk), np.float32)
        for frame, (planes_Pn, map_CK, out_nC) in enumerate(zip(planes_FPn, maps_FCK, out_FnC, strict=True)):
            for first in range(0, n, chunk):
                span = slice(first, min(first + chunk, n))
                rows = rows_Kn[:, : span.stop - span.start]
                if params.noise is not None:
                    rows[:noisy] = self._noise_N3n[params.noise.flat[frame], :, span]
                part = planes_Pn[:, span]
                rows[noisy:-1] = _cube_root_xyz(part) if spec.lab else part
                np.matmul(rows.T, map_CK.T, out=out_nC[span])

    def _noise_shares(
        self, planes_FPn: NDArray[np.uint8], maps_FCK: NDArray[np.float32], views: int
    ) -> NDArray[np.float32]:
        """(F, 3, 3): how much of each channel of noise goes into each channel; see dali.fill_dropped."""
        dropped_FC = (maps_FCK == 0).all(-1)
        moments_F2 = np.array(
            [
                _moments(map_CK[dropped_C.argmin()], planes_Pn)
                for map_CK, dropped_C, planes_Pn in zip(maps_FCK, dropped_FC, planes_FPn, strict=True)
            ]
        )
        parts = {"frame": len(maps_FCK), "view": views, "clip": views // self._spec.views}[
            self._spec.colour_scope
        ]
        mean, variance = np.moveaxis(moments_F2.reshape(parts, -1, 2), -1, 0)
        deviation = np.sqrt(variance.mean(1) + mean.var(1)).repeat(len(maps_FCK) // parts)
        strength = 0.01 / NOISE_SCALE * deviation[:, None] * dropped_FC
        return (strength[:, :, None] * np.eye(3)).astype(np.float32)


def noise_bank(count: int, size: int) -> NDArray[np.int8]:
    """Gaussian noise (count, size, size, 3) of deviation NOISE_SCALE, the same for ever."""
    noise = NOISE_SCALE * generator(NOISE, 0, 0).standard_normal((count, size, size, 3), dtype=np.float32)
    return np.clip(np.rint(noise), -127, 127).astype(np.int8)


def _turned(planes: NDArray[np.uint8], angles_V: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn the frames (F, P, S, S) of each view about their centre, degrees counter-clockwise; black beyond the edge."""
    S = planes.shape[-1]
    out = np.empty((len(angles_V), len(planes) // len(angles_V), planes.shape[1], S * S), np.uint8)
    for frames, angle, turned in zip(planes.reshape(out.shape), angles_V, out, strict=True):
        neighbours = _neighbours(S, angle)
        for planes_Pn, turned_Pn in zip(frames, turned, strict=True):
            total = np.full(planes_Pn.shape, 0.5, np.float32)  # to round
            for place, weight in neighbours:
                total += np.take(planes_Pn, place, axis=1, mode="clip") * weight
            turned_Pn[:] = total
    return out.reshape(planes.shape)


def _neighbours(side: int, angle: float) -> list[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Of each pixel of a frame that is turned: where in the frame it comes from, four places and their weights."""
    down, right = np.mgrid[:side, :side].reshape(2, -1) - (side - 1) / 2
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = cos * right - sin * down + (side - 1) / 2, sin * right + cos * down + (side - 1) / 2
    out = []
    for i in (np.floor(x), np.floor(x) + 1):
        for j in (np.floor(y), np.floor(y) + 1):
            inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
            weight = (1 - abs(x - i)) * (1 - abs(y - j)) * inside
            out.append(((j * side + i).astype(np.intp), weight.astype(np.float32)))
    return out


def _moments(weights_K: NDArray[np.float32], planes_Pn: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and variance of the weighted sum of planes; the last weight, a constant, moves neither's spread."""
    terms = [w * plane for w, plane in zip(weights_K[:-1], planes_Pn, strict=True) if w]
    level_n = sum(terms[1:], terms[0])
    mean = level_n.mean()
    level_n -= mean
    return float(mean), float(level_n @ level_n) / len(level_n)  # NumPy's var takes longer


def _differences(grey_FPn: NDArray[np.uint8], views: int) -> NDArray[np.int16]:
    """Frame t + 1 minus frame t of each view: (V·(T + 1), 1, n) → (V·T, 1, n)."""
    by_view = grey_FPn.reshape(views, -1, *grey_FPn.shape[1:])
    return np.subtract(by_view[:, 1:], by_view[:, :-1], dtype=np.int16).reshape(-1, *grey_FPn.shape[1:])


def _srgb_curve() -> NDArray[np.float32]:
    """Linear light, 0–1, of the 256 levels."""
    level = np.arange(256) / 255
    return np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92).astype(np.float32)


def _lab_curve() -> NDArray[np.float32]:
    """f of CIE Lab at 65536 places from 0 to 1: off by 6e-5 at most, 0.03 of a or b."""
    t = np.arange(65536) / 65535
    return np.where(t > (6 / 29) ** 3, np.cbrt(t), t * ((29 / 6) ** 2 / 3) + 4 / 29).astype(np.float32)


_LINEAR, _ROOT = _srgb_curve(), _lab_curve()
_XYZ = colour.XYZ_OVER_WHITE.astype(np.float32)


def _cube_root_xyz(rgb_3n: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As dali.cube_root_xyz, (3, n)."""
    linear = np.empty(rgb_3n.shape, np.float32)
    np.take(
        _LINEAR, rgb_3n, out=linear, mode="clip"
    )  # several times as fast as an index, which checks its bounds
    place = (_XYZ @ linear * np.float32(len(_ROOT) - 1) + np.float32(0.5)).astype(np.intp)
    return np.take(_ROOT, place, out=linear, mode="clip")
