#!/usr/bin/env python3
"""A control for methods that learn from motion: a data set whose every video stands still.

    tools/freeze_shards.py --out data/demo-still                          of the demo set
    tools/freeze_shards.py data/ucf101 --out data/ucf101-still
    train.py --objective pace --small --data data/demo-still --split train --val-split test

Each video becomes its own middle frame, as often and encoded as before: lengths, splits, labels, codec and the places
of key frames stay, and so do the traces that an encoder leaves; motion goes. Pace prediction must then stay at chance;
if it does not, it reads something else. The same run on the moving videos is its counterpart.
"""

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import tyro
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from pipelines.decode import decode_frames
from shards import Dataset, InputError, one_line
from shards.build.scan import data_folder
from shards.errors import new_or_empty
from shards.schema import safe_name
from shards.table import publish
from shards.tar import Sample, indexed, write_shard
from shards.video.encode import Encoding, house_frame, write_mp4
from shards.video.mp4 import DecodeError


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: Path
    """Folder to write; new or empty."""
    data: tyro.conf.Positional[Path | None] = None
    """A data set made by tools/make_shards.py, or a folder of videos; the rendered demo set by default."""
    per_shard: int = 500
    """Videos a tar."""
    threads: int = os.cpu_count() or 2
    """Videos at a time."""


def main(arguments: Arguments) -> None:
    out = arguments.out
    new_or_empty(out, f"--out {out}")
    if arguments.per_shard < 1 or arguments.threads < 1:
        raise InputError("--per-shard and --threads must be at least 1")
    dataset = Dataset(data_folder(arguments.data))
    settings = dataset.info["settings"]
    known = {field.name for field in fields(Encoding)}
    encoding = Encoding(**{name: value for name, value in settings.items() if name in known})
    rows = dataset.select().tolist()
    out.mkdir(parents=True, exist_ok=True)
    name, shards = f"{dataset.name}-still", []
    with ThreadPoolExecutor(arguments.threads) as pool, tqdm(total=len(rows), unit="video") as bar:
        for number, first in enumerate(range(0, len(rows), arguments.per_shard)):
            samples = []
            for sample in pool.map(
                freeze, repeat(dataset), rows[first : first + arguments.per_shard], repeat(encoding)
            ):
                samples.append(sample)
                bar.update()
            shards.append(write_shard(out, f"{safe_name(name)}-{number:06d}", samples))
    publish(out, dataset.classes, shards, settings, name=name)
    print(f"{out}: {len(rows)} videos that stand still")


def freeze(dataset: Dataset, row: int, encoding: Encoding) -> Sample:
    """The video of one row with its middle frame in the place of every frame. Raises InputError if it cannot be decoded."""
    facts = json.loads(dataset.read(row, "json"))
    key, label = facts.pop("key"), facts.pop("label")
    count = facts["num_frames"]
    try:
        video = indexed(dataset.read(row))
        ((_, picture),) = decode_frames(video, [count // 2])
    except DecodeError as error:
        raise InputError(
            f"{dataset.path}: {key} cannot be decoded ({error}); run tools/check_shards.py"
        ) from error
    if len(keys := video.index.gops) > 1:  # of a copied video, its own
        encoding = replace(encoding, gop=int(keys[1] - keys[0]))
    still = house_frame(picture, picture.width, picture.height, encoding.codec, VideoReformatter())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "still.mp4"
        write_mp4(repeat(still, count), path, Fraction(facts["fps"]).limit_denominator(100_000), encoding)
        return Sample(key, path.read_bytes(), facts, label)


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Arguments, description=__doc__))
