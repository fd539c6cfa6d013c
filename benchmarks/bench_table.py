#!/usr/bin/env python3
"""How long a very large table and its order take to open, and how much memory: rows are simulated, no video is.

    benchmarks/bench_table.py --json benchmarks/results/DATE-MACHINE-table.json            ten million rows in ten thousand tars
    benchmarks/bench_table.py --rows 1000000

Writes a table of that many rows and sparse tars of the length it states into a temporary folder, then opens it in a
process of its own: Dataset, a split selected, an epoch's order. Takes about a minute and 2 GB of
disk for ten million rows.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from tqdm import tqdm

from benchmarks.machine import describe
from shards import one_line
from shards.documents import write_json
from shards.schema import DESCRIPTION, TABLE
from shards.table import stamp

ROOT = Path(__file__).parents[1]
BATCH = 256
OPENED = "opened"
PER_GROUP = 1000  # tars whose rows make a row group of the table


@dataclass(frozen=True)
class Settings:
    """What is simulated."""

    rows: int = 10_000_000
    """Videos."""
    per_shard: int = 1000
    """Videos in a tar."""
    json: Path | None = None
    """Write the result here as well."""


def main(settings: Settings) -> None:
    machine = describe("pyarrow", "numpy")
    with tempfile.TemporaryDirectory(prefix="bench-table-") as folder:
        simulate(Path(folder), settings.rows, settings.per_shard)
        command = [sys.executable, __file__, OPENED, folder]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        seen = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        size = (Path(folder) / TABLE).stat().st_size
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["benchmarks/bench_table.py", *sys.argv[1:]]),
        "machine": machine,
        "rows": settings.rows,
        "table_bytes": size,
        **json.loads(seen.stdout),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n")


def simulate(folder: Path, rows: int, per_shard: int) -> None:
    """A data set of `rows` rows: keys, labels, lengths and offsets as a real one has, tars of zeros on no disk."""
    size, tars = 1_000_000, {}
    generator = np.random.default_rng(0)
    writer, waiting = None, []
    for first in tqdm(range(0, rows, per_shard), desc="simulating", unit="tar"):
        count = min(per_shard, rows - first)
        numbers, name = np.arange(first, first + count), f"large-{first // per_shard:06d}.tar"
        digests = generator.bytes(32 * count).hex()
        offsets = np.arange(count, dtype=np.int64) * (size + 2048) + 512
        with open(folder / name, "wb") as handle:
            handle.truncate(count * (size + 2048) + 1024)
        tars[name] = {"bytes": count * (size + 2048) + 1024, "sha256": digests[:64]}
        label = generator.integers(0, 700, count).astype(np.int32)
        table = pa.table(
            {
                "key": [f"class_{label[i]}-video_{n:011d}" for i, n in enumerate(numbers)],
                "shard": [name] * count,
                "num_frames": generator.integers(100, 301, count).astype(np.int32),
                "fps": np.full(count, 30.0),
                "width": np.full(count, 340, np.int32),
                "height": np.full(count, 256, np.int32),
                "label": label,
                "label_name": [f"class {n}" for n in label],
                "split": np.where(generator.random(count) < 0.9, "train", "val").tolist(),
                "source": [f"class {label[i]}/video_{n:011d}.mp4" for i, n in enumerate(numbers)],
                "sha256": [digests[64 * i : 64 * i + 64] for i in range(count)],
                "mp4_offset": offsets,
                "mp4_size": np.full(count, size, np.int64),
                "json_offset": offsets + size + 512,
                "json_size": np.full(count, 400, np.int64),
            }
        )
        writer = writer or pq.ParquetWriter(folder / TABLE, table.schema)
        waiting.append(table)
        if len(waiting) == PER_GROUP or first + count == rows:
            writer.write_table(pa.concat_tables(waiting))
            waiting.clear()
    assert writer is not None
    writer.close()
    description = {"name": "large", "classes": [f"class {n}" for n in range(700)], "rows": rows}
    write_json(
        folder / DESCRIPTION, description | {"settings": {}, "table": stamp(folder / TABLE), "tars": tars}
    )


def measure(folder: Path) -> dict[str, object]:
    """Seconds of each step, and the memory of the process after all of them."""
    from pipelines.sampler import ShuffledOrder
    from shards import Dataset

    seconds: dict[str, float] = {}
    cpu = time.process_time()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 3)

    with timed("open"):
        dataset = Dataset(folder)
    with timed("select"):
        rows = dataset.select(split="train", min_frames=120)
    with timed("order"):
        ShuffledOrder(len(rows), BATCH, seed=0).epoch(0)
    cpu = round(time.process_time() - cpu, 3)  # all threads; on a busy machine it says more than the clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": seconds,
        "open_and_order_s": round(sum(seconds.values()), 3),
        "cpu_s": cpu,
        "peak_rss_gib": round(peak, 2),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == [OPENED]:  # this script as its own child, whose memory is what counts
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        with one_line():
            main(tyro.cli(Settings, description=__doc__))
