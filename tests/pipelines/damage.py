"""Ways in which a tar is damaged while somebody reads from it."""

import os

import numpy as np

from shards import Dataset

IN_PLACE = ("zeroed", "garbage", "middle", "truncated", "empty")


def damage(kind: str, dataset: Dataset, row: int) -> None:
    """Damage a row's video in its tar, as long as it is opened: the file stays the same one.

    zeroed, garbage: all its bytes; middle: garbage in the middle third; truncated: the tar ends amid the video;
    empty: the video has no bytes, and what follows in the tar moves up.
    """
    tar = dataset.path / dataset.column("shard")[row]
    offset, size = (int(dataset.column(f"mp4_{what}")[row]) for what in ("offset", "size"))
    if kind == "truncated":
        os.truncate(tar, offset + size // 2)
        return
    noise = np.random.default_rng(0).bytes(size)
    video = tar.read_bytes()[offset : offset + size]
    third = size // 3
    new = {
        "zeroed": bytes(size),
        "garbage": noise,
        "middle": video[:third] + noise[third : 2 * third] + video[2 * third :],
        "empty": b"",
    }[kind]
    with tar.open("r+b") as file:
        file.seek(offset + size)
        rest = file.read()
        file.seek(offset)
        file.write(new + rest)
        file.truncate()
