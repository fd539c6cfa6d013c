"""Each colour map against the formula it stands for, pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import colour
from pipelines.sampling import sample_params
from pipelines.views import Jitter, ViewSpec
from tests.pipelines.reference import lab

PIXELS = np.array(
    [*np.random.default_rng(0).uniform(0, 255, (40, 3)), [0, 0, 0], [255, 255, 255], [255, 0, 0]]
)
factors = st.floats(0, 2)
turns = st.floats(-1, 1)


def through(matrix: np.ndarray, pixels: np.ndarray = PIXELS) -> np.ndarray:
    return np.array([[sum(m[k] * p[k] for k in range(3)) + m[3] for m in matrix[:3]] for p in pixels])


def luma(p) -> float:
    return 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]


def chroma(p) -> complex:
    """I + jQ of NTSC."""
    i = 0.5959 * p[0] - 0.2746 * p[1] - 0.3213 * p[2]
    q = 0.2115 * p[0] - 0.5227 * p[1] + 0.3112 * p[2]
    return complex(i, q)


def brightened(p, f):
    return [f * c for c in p]


def contrasted(p, f):
    return [127.5 + f * (c - 127.5) for c in p]


def saturated(p, f):
    return [f * c + (1 - f) * luma(p) for c in p]


def hue_turned(p, turn):
    """Solves Y, I, Q of the result for R, G, B."""
    target = chroma(p) * complex(math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn))
    rows = [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    return np.linalg.solve(rows, [luma(p), target.real, target.imag])


@pytest.mark.parametrize(
    "matrix, formula",
    [(colour.brightness, brightened), (colour.contrast, contrasted), (colour.saturation, saturated)],
)
@settings(deadline=None, max_examples=20)
@given(factor=factors)
def test_a_factor(matrix, formula, factor) -> None:
    expected = [formula(p, factor) for p in PIXELS]
    np.testing.assert_allclose(through(matrix(factor)), expected, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(turn=turns)
def test_hue_turns_chroma_and_keeps_luma(turn) -> None:
    for before, after in zip(PIXELS, through(colour.hue(turn)), strict=True):
        assert luma(after) == pytest.approx(luma(before), abs=1e-9)
        rotated = chroma(before) * complex(math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn))
        assert chroma(after) == pytest.approx(rotated, abs=1e-9)


def test_no_turn_and_a_whole_turn_change_nothing() -> None:
    for turn in (0, 1, -1):
        np.testing.assert_allclose(colour.hue(turn), np.eye(4), atol=1e-12)
    assert np.abs(through(colour.hue(0.5)) - PIXELS).max() > 50
    for unchanged in (colour.brightness(1), colour.contrast(1), colour.saturation(1)):
        np.testing.assert_allclose(unchanged, np.eye(4), atol=1e-12)


def test_grey_gives_equal_channels_of_the_same_luma() -> None:
    for before, after in zip(PIXELS, through(colour.saturation(0)), strict=True):
        np.testing.assert_allclose(after, [luma(before)] * 3, atol=1e-9)


def test_normalise_is_that_of_imagenet() -> None:
    expected = [[(c / 255 - m) / s for c, m, s in zip(p, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
                for p in PIXELS]  # fmt: skip
    np.testing.assert_allclose(through(colour.normalise()), expected, atol=1e-9)


def test_maps_broadcast_over_leading_axes() -> None:
    values = np.array([[0.1, 0.7, 1.3], [0.2, 0.5, 0.9]])
    for matrix in (colour.brightness, colour.contrast, colour.saturation, colour.hue):
        many = matrix(values)
        assert many.shape == (2, 3, 4, 4) and many.dtype == np.float64
        for place in np.ndindex(2, 3):
            np.testing.assert_allclose(many[place], matrix(values[place]), atol=1e-14)


def colour_maps(jitter: Jitter, rows: int = 300) -> np.ndarray:
    """The sampled maps without their normalisation: RGB 0–255 → RGB, (rows, 4, 4)."""
    spec, ones = ViewSpec(offsets=((0,),), size=32, jitter=jitter), np.ones(rows, dtype=np.int64)
    params = sample_params(spec, np.arange(rows), ones, 64 * ones, 64 * ones, seed=0, epoch=0).colours[
        :, 0, 0
    ]
    square = np.concatenate([params.astype(np.float64), np.tile([[[0, 0, 0, 1.0]]], (rows, 1, 1))], axis=1)
    return np.linalg.inv(colour.normalise()) @ square


def test_each_strength_draws_within_its_own_range() -> None:
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "probability": 1.0, "grey": 0.0}
    grey, red = np.array([200.0, 200, 200]), np.array([200.0, 20, 20])
    bright = through_each(colour_maps(Jitter(**{**off, "brightness": 0.4})), grey)[:, 0] / 200
    contrast = (through_each(colour_maps(Jitter(**{**off, "contrast": 0.3})), grey)[:, 0] - 127.5) / 72.5
    after = through_each(colour_maps(Jitter(**{**off, "saturation": 0.5})), red)
    saturation = (after[:, 0] - after[:, 1]) / 180
    for values, strength in ((bright, 0.4), (contrast, 0.3), (saturation, 0.5)):
        assert 1 - strength - 1e-3 <= values.min() < 1 - 0.95 * strength
        assert 1 + 0.95 * strength < values.max() <= 1 + strength + 1e-3
    after = through_each(colour_maps(Jitter(**{**off, "hue": 0.2})), red)
    angles = np.angle([chroma(p) / chroma(red) for p in after]) / (2 * math.pi)
    assert -0.2005 <= angles.min() < -0.19 and 0.19 < angles.max() <= 0.2005


def through_each(maps: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    return np.array([through(m, pixel[None])[0] for m in maps])


def test_jitter_and_grey_come_with_their_probabilities() -> None:
    maps = colour_maps(Jitter(probability=0.7, grey=0.0), rows=1500)
    changed = np.abs(maps - np.eye(4)).max((1, 2)) > 1e-3
    assert abs(changed.mean() - 0.7) < 0.04
    after = through_each(colour_maps(Jitter(probability=0.0, grey=0.3), rows=1500), np.array([200.0, 20, 60]))
    assert abs((np.ptp(after, axis=1) < 1e-3).mean() - 0.3) < 0.04


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_the_order_is_brightness_contrast_saturation_hue_grey_normalise(grey) -> None:
    """Single-strength specs with the same seed reveal the factors; one after the other they make the whole."""
    strengths = {"brightness": 0.6, "contrast": 0.7, "saturation": 0.8, "hue": 0.3}
    off = {**dict.fromkeys(strengths, 0.0), "probability": 1.0, "grey": 0.0}
    pixel = np.array([180.0, 40.0, 90.0])
    alone = {name: colour_maps(Jitter(**{**off, name: value}), rows=20) for name, value in strengths.items()}
    whole = colour_maps(Jitter(**strengths, probability=1.0, grey=grey), rows=20)
    for row in range(20):
        b = through(alone["brightness"][row], pixel[None])[0][0] / pixel[0]
        c = (through(alone["contrast"][row], pixel[None])[0][0] - 127.5) / (pixel[0] - 127.5)
        after = through(alone["saturation"][row], pixel[None])[0]
        s = (after[0] - after[1]) / (pixel[0] - pixel[1])
        turned = through(alone["hue"][row], pixel[None])[0]
        turn = np.angle(chroma(turned) / chroma(pixel)) / (2 * math.pi)
        expected = hue_turned(saturated(contrasted(brightened(pixel, b), c), s), turn)
        expected = [luma(expected)] * 3 if grey else expected
        np.testing.assert_allclose(through(whole[row], pixel[None])[0], expected, atol=0.02)


@pytest.mark.parametrize("drop", [-1, 0, 1, 2])
def test_standardised_lab_is_cie_lab(drop) -> None:
    linear = np.where(PIXELS / 255 <= 0.04045, PIXELS / 255 / 12.92, ((PIXELS / 255 + 0.055) / 1.055) ** 2.4)
    xyz = linear @ colour.XYZ_OVER_WHITE.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    found = through(colour.standardised_lab(drop), f)
    expected = (lab(PIXELS) - [50, 0, 0]) / [25, 10, 10]
    if drop >= 0:
        expected[:, drop] = 0
        assert (found[:, drop] == 0).all()
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_lab_of_white_black_and_red_by_the_book() -> None:
    f_white, f_black = np.ones((1, 3)), np.full((1, 3), 4 / 29)
    scale, mean = np.array([25, 10, 10]), np.array([50, 0, 0])
    found = [through(colour.standardised_lab(-1), f)[0] * scale + mean for f in (f_white, f_black)]
    np.testing.assert_allclose(found, [[100, 0, 0], [0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(lab(np.array([255.0, 0, 0])), [53.24, 80.09, 67.20], atol=0.01)


def test_each_lab_channel_is_dropped_a_third_of_the_time() -> None:
    spec, ones = ViewSpec(offsets=((0,),), size=32, lab_drop=True), np.ones(1500, dtype=np.int64)
    maps = sample_params(spec, np.arange(1500), ones, 64 * ones, 64 * ones, seed=0, epoch=0).colours[:, 0, 0]
    dropped = (maps == 0).all(-1)
    assert (dropped.sum(-1) == 1).all()
    assert np.abs(dropped.mean(0) - 1 / 3).max() < 0.04
