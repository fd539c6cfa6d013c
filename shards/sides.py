"""Which videos NVDEC cannot reuse a decoder for, by the sides of their pictures."""

import numpy as np
from numpy.typing import NDArray

from shards.dataset import Dataset

MULTIPLE = 16  # pixels: H.264 codes pictures in blocks of 16×16


def uneven(width: NDArray[np.integer], height: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a side, in pixels, is no multiple of 16; element by element."""
    return (width % MULTIPLE != 0) | (height % MULTIPLE != 0)


def sides_remark(width: NDArray[np.integer], height: NDArray[np.integer]) -> str:
    """One line on how many of these videos have uneven sides, (rows,) pixels each, and what it costs; "" for none.

    DALI keeps an NVDEC decoder and compares the size that it was made for, which is coded and so a multiple of 16,
    with the size that the next video is shown at. Where they differ it makes another.
    """
    rows = np.flatnonzero(uneven(width, height))
    if not len(rows):
        return ""
    first = f"the first is {width[rows[0]]}×{height[rows[0]]}"
    return (
        f"{len(rows)} of {len(width)} videos have a side that is no multiple of {MULTIPLE} ({first}): NVDEC opens a "
        "decoder for each of them, 50 to 70 ms on an H100, instead of reusing one; "
        f"tools/make_shards.py crops to such multiples (--multiple {MULTIPLE}, without --copy)"
    )


def nvdec_remark(dataset: Dataset, rows: NDArray[np.integer] | None = None) -> str:
    """`sides_remark` of some rows of an open data set, by default of all."""
    width, height = dataset.column("width"), dataset.column("height")
    return sides_remark(width, height) if rows is None else sides_remark(width[rows], height[rows])
