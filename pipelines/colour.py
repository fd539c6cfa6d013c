"""Colour as algebra: every change of colour is one affine map of a pixel, so a chain of them is one 3×4 matrix.

The maps take RGB in 0–255 and never clamp in between. This differs from torchvision, which clamps after each
operation, scales contrast about the image's own mean, rotates hue in HSV and draws the order at random.
All functions broadcast over leading axes and return homogeneous matrices of shape (…, 4, 4), float64.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # BT.601
LUMA_709 = np.array([0.2126, 0.7152, 0.0722])  # BT.709
MID_GREY = 127.5
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
GREY_STD = float(LUMA @ IMAGENET_STD)  # of luma in 0–1, were the channels fully correlated

_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # NTSC
_YIQ_INVERSE = np.linalg.inv(_YIQ)

# sRGB (linear, 0–1) → CIE XYZ relative to the D65 white point, so that white is (1, 1, 1).
XYZ_OVER_WHITE = (
    np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / np.array([0.950456, 1.0, 1.088754])[:, None]
)
# (f(X), f(Y), f(Z)) → L in 0–100, a, b: CIE 1976.
LAB_FROM_F = np.array([[0.0, 116, 0, -16], [500, -500, 0, 0], [0, 200, -200, 0], [0, 0, 0, 1]])
# What "standardised" means for Lab: round figures, near those of everyday video.
LAB_MEAN = np.array([50.0, 0.0, 0.0])
LAB_STD = np.array([25.0, 10.0, 10.0])


def _homogeneous(linear: ArrayLike, offset: ArrayLike = 0.0) -> Matrix:
    linear = np.asarray(linear, dtype=np.float64)
    out = np.zeros((*linear.shape[:-2], 4, 4))
    out[..., :3, :3] = linear
    out[..., :3, 3] = offset
    out[..., 3, 3] = 1.0
    return out


def _scale(factor: ArrayLike) -> Matrix:
    return np.asarray(factor, dtype=np.float64)[..., None, None] * np.eye(3)


def brightness(factor: ArrayLike) -> Matrix:
    """Multiply each channel by `factor`; factor (…) → (…, 4, 4)."""
    return _homogeneous(_scale(factor))


def contrast(factor: ArrayLike) -> Matrix:
    """Scale about mid-grey (127.5) by `factor`; factor (…) → (…, 4, 4)."""
    offset = MID_GREY * (1 - np.asarray(factor, dtype=np.float64))
    return _homogeneous(_scale(factor), offset[..., None])


def saturation(factor: ArrayLike) -> Matrix:
    """Mix with the pixel's luma: 0 is grey, 1 unchanged; factor (…) → (…, 4, 4)."""
    grey = np.broadcast_to(LUMA, (3, 3))
    return _homogeneous(_scale(factor) + _scale(1 - np.asarray(factor, dtype=np.float64)) @ grey)


def hue(turn: ArrayLike) -> Matrix:
    """Rotate chroma in YIQ by `turn`, a fraction of the circle; turn (…) → (…, 4, 4)."""
    angle = 2 * np.pi * np.asarray(turn, dtype=np.float64)
    rotation = np.zeros((*angle.shape, 3, 3))
    rotation[..., 0, 0] = 1
    rotation[..., 1, 1] = rotation[..., 2, 2] = np.cos(angle)
    rotation[..., 2, 1] = np.sin(angle)
    rotation[..., 1, 2] = -rotation[..., 2, 1]
    return _homogeneous(_YIQ_INVERSE @ rotation @ _YIQ)


def normalise(mean: ArrayLike = IMAGENET_MEAN, std: ArrayLike = IMAGENET_STD) -> Matrix:
    """RGB 0–255 → (rgb/255 − mean)/std, mean and std (3,) in 0–1; returns (4, 4)."""
    mean, std = np.asarray(mean), np.asarray(std)
    return _homogeneous(np.diag(1 / (255 * std)), -mean / std)


def rgb_from_yuv(*, full: bool, luma: ArrayLike = LUMA) -> NDArray[np.float32]:
    """(Y, Cb, Cr) of 8 bits, limited range or full → RGB 0–255; (3, 4) float32. luma: shares of red, green and blue in Y."""
    luma = np.asarray(luma)
    red, green, blue = luma
    chroma = np.array([[0, 2 * (1 - red)], [0, 0], [2 * (1 - blue), 0]])
    chroma[1] = -(luma @ chroma) / green  # luma stays what it is
    scale = np.array([1, 1, 1]) if full else 255 / np.array([219, 224, 224])
    linear = np.column_stack([np.ones(3), chroma]) * scale
    return np.column_stack([linear, -linear @ [0 if full else 16, 128, 128]]).astype(np.float32)


def bgr() -> Matrix:
    """Red and blue change places; returns (4, 4)."""
    return _homogeneous(np.eye(3)[::-1])


def keep(channel: ArrayLike) -> Matrix:
    """Set all but one channel to 0; channel (…) → (…, 4, 4)."""
    return _homogeneous(_scale(1.0) * (np.arange(3) == np.asarray(channel)[..., None])[..., None])


def copy(channel: ArrayLike) -> Matrix:
    """Put one channel into all three (−1 leaves them); channel (…) → (…, 4, 4)."""
    channel = np.asarray(channel)[..., None, None]
    return _homogeneous(np.where(channel < 0, np.eye(3), np.arange(3) == channel))


def standardised_lab(drop: ArrayLike) -> Matrix:
    """(f(X), f(Y), f(Z)) → standardised Lab with channel `drop` set to 0 (−1 drops none); drop (…) → (…, 4, 4).

    VDIM, section 3.1, item 4: "convert each frame from RGB to Lab, and then randomly drop a color channel".
    """
    keep = np.arange(3) != np.asarray(drop)[..., None]
    scale = keep / LAB_STD
    return _homogeneous(scale[..., None] * np.eye(3), -LAB_MEAN * scale) @ LAB_FROM_F
