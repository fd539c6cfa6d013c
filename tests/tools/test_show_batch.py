"""tools/show_batch.py: what it says of a sample, and its page in a browser."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.sampling import sample_params
from pipelines.views import ViewSpec
from tests.browser import chromium
from tests.evaluation.rendered import Video, write_set
from tools import show_batch


@pytest.mark.parametrize(
    "numbers, words",
    [
        (range(3, 10), "3–9"),
        (range(4, 61, 8), "4–60 by 8"),
        ([0, 2, 4, 5, 5, 5], "0–4 by 2, 5 ×3"),
        ([59] * 32, "59 ×32"),
        ([7], "7"),
        ([9, 2, 3], "9, 2, 3"),
        ([0, 0, 0, 1, 1, 1], "0 ×3, 1 ×3"),
    ],
)
def test_frame_numbers_in_short(numbers, words: str) -> None:
    assert show_batch.ranges(np.array(numbers)) == words


SPECS = {
    "the second view begins after the end": ViewSpec(offsets=((0, 1, 2), (10, 12, 14)), size=16),
    "views start on their own": ViewSpec(offsets=((0, 4, 8), (0, 1, 2)), size=16, start_scope="view"),
    "over again": ViewSpec(offsets=((0, 5, 10, 15),), size=16, padding="wrap"),
    "a difference": ViewSpec(offsets=((6, 7, 8), (9, 10, 11)), size=16, modality="difference"),
    "paces": ViewSpec(offsets=((0, 1, 2, 3),) * 2, size=16, paces=(1, 4), padding="wrap"),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("length", [3, 7, 12, 40])
def test_frames_beyond_the_end_are_those_that_the_video_lacks(name: str, length: int) -> None:
    """By search: the one start from which all views that share it show what they show."""
    spec = SPECS[name]
    row = np.array([5])
    for epoch in range(20):
        params = sample_params(
            spec, row, *(np.array([number]) for number in (length, 64, 64)), seed=0, epoch=epoch
        ).sample(0)
        alone = bool(spec.paces) or spec.start_scope == "view"
        groups = [[view] for view in range(spec.views)] if alone else [list(range(spec.views))]
        found = show_batch.beyond_end(params, spec)
        for group in groups:
            wanted = {}
            for start in range(length):
                ahead = []
                for view in group:
                    pace = spec.paces[params.pace[view]] if params.pace is not None else 1
                    numbers = [start + pace * offset for offset in spec.offsets[view]]
                    ahead.append([*numbers, numbers[-1] + 1] if spec.modality == "difference" else numbers)
                shown = [
                    [n % length if spec.padding == "wrap" else min(n, length - 1) for n in numbers]
                    for numbers in ahead
                ]
                if shown == params.frames[group].tolist():
                    beyond = np.array(ahead)[:, -spec.frames :] >= length
                    wanted[start] = beyond.tolist()
            assert found[group].tolist() in wanted.values(), (epoch, wanted)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a batch of three short videos, as VDIM looks at them: 127 frames from first to last."""
    folder = tmp_path_factory.mktemp("batch")
    data = write_set(folder / "short", [Video(label, "train", 40 + label) for label in range(3)])
    flags = ["--objective", "vdim", "--no-small", "--data", data, "--batch-size", 3, "--device", "cpu"]
    show_batch.main([str(flag) for flag in (*flags, "--threads", 1, "--out", folder / "batch")])
    return folder / "batch.html"


def test_the_page_marks_what_lies_beyond_the_end_and_has_the_spec_first(batch: Path) -> None:
    text = batch.read_text()
    assert (
        len(re.findall(r"class=beyond", text)) == 6 and "32 of 32 frames" in text
    )  # two views of each video
    assert text.index("padding") < text.index("<figure>") and "settings at their defaults" in text
    assert not re.search(r"""(src|href)=(?!["']?data:)""", text)
    assert batch.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [500, 1440])
def test_the_page_fits_its_window_and_its_rows_are_whole(batch: Path, width: int, tmp_path: Path) -> None:
    asking = tmp_path / "asking.html"
    script = (
        "console.log('page ' + document.documentElement.scrollWidth + ' of ' + innerWidth);"
        "console.log('tops ' + [...document.querySelectorAll('.views')].map(row => "
        "new Set([...row.children].map(one => one.getBoundingClientRect().top)).size).join())"
    )
    asking.write_text(batch.read_text() + f"<script>addEventListener('load', () => {{ {script} }})</script>")
    done = chromium(asking, f"--window-size={width},900", "--dump-dom")
    page = re.search(r"page (\d+) of (\d+)", done.stderr)
    tops = re.search(r"tops ([\d,]+)", done.stderr)
    assert page and int(page[1]) <= int(page[2]), done.stderr
    assert tops and tops[1] == "1,1,1", done.stderr
