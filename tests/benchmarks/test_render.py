"""The set `--data rendered`: its pictures stay those that the committed figures were measured on."""

import numpy as np

from benchmarks.render import MOTIONS, draw_clip


def test_the_pictures_are_those_that_the_figures_were_measured_on() -> None:
    """The sum of the first eight pictures was noted when the set was made."""
    clip = draw_clip("bounce", 8, np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, 0])))
    assert int(clip.astype(np.int64).sum()) == 51332718


def test_frames_move_smoothly_and_a_period_is_about_36_frames() -> None:
    for number, motion in enumerate(MOTIONS):
        clip = draw_clip(motion, 90, np.random.default_rng(number)).astype(np.float32)
        assert clip.shape == (90, 144, 176, 3)
        step = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3))
        assert step.max() < 12 and step.mean() > 0.05
        back = [np.abs(clip[:40] - clip[lag : lag + 40]).mean() for lag in range(50)]
        assert 28 <= 15 + int(np.argmin(back[15:])) <= 43
