"""The table beside the tars: its columns, how it is written, and what else lies in a data set's folder."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import written_aside
from shards.storage import open_regular

TABLE = "samples.parquet"
DESCRIPTION = "dataset.json"
REJECTED = "rejected.jsonl"
QUARANTINE = "quarantine.jsonl"

# A row per video; fps is frames per second, offsets and sizes are bytes in the row's tar, failure_time (Oops)
# seconds, decoded_fraction the share of the frames that the source's container announced.
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int32()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("split1", pa.string()),
        ("split2", pa.string()),
        ("split3", pa.string()),
        ("failure_time", pa.float64()),
        ("decoded_fraction", pa.float64()),
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("mp4_offset", pa.int64()),
        ("mp4_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("cls_offset", pa.int64()),
        ("cls_size", pa.int64()),
        ("flow.mp4_offset", pa.int64()),
        ("flow.mp4_size", pa.int64()),
        ("flow.mp4_sha256", pa.string()),
    ]
)
ONLY_WHEN_USED = (
    *("split", "split1", "split2", "split3", "failure_time", "decoded_fraction"),
    *("cls_offset", "cls_size", "flow.mp4_offset", "flow.mp4_size", "flow.mp4_sha256"),
)


def write_table(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `samples.parquet` from rows that have COLUMNS' names; optional columns only when used."""
    unused = {name for name in ONLY_WHEN_USED if all(row.get(name) is None for row in rows)}
    schema = pa.schema([column for column in COLUMNS if column.name not in unused])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with written_aside(folder / TABLE) as temporary:
        pq.write_table(table, temporary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, for people to read."""
    with written_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    with written_aside(path) as temporary:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects)
        temporary.write_text(lines, encoding="utf-8")


def stamp(path: Path) -> dict[str, Any]:
    """Length and sha256 of a file, as dataset.json states them."""
    with open(open_regular(path), "rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def publish(
    out: Path,
    classes: Sequence[str],
    shards: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    rejected: Sequence[dict[str, Any]] = (),
    *,
    name: str,
) -> dict[str, Any]:
    """Write what makes the tars in `out` a data set; returns its description, the content of dataset.json.

    shards: for each, `name`, `size` (bytes), `sha256` and its `rows`. The description is written last: a
    folder that has one is complete.
    """
    rows = [row for shard in shards for row in shard["rows"]]
    reasons = Counter(one["reason"] for one in rejected)
    write_json_lines(out / REJECTED, rejected)
    write_table(out, rows)
    description = {
        "name": name,
        "classes": list(classes),
        "rows": len(rows),
        "frames": sum(row["num_frames"] for row in rows),
        "rejected": dict(sorted(reasons.items())),
        "settings": settings,
        "tools": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info, "pyarrow": pa.__version__},
        "table": stamp(out / TABLE),
        "tars": {one["name"]: {"bytes": one["size"], "sha256": one["sha256"]} for one in shards},
    }
    write_json(out / DESCRIPTION, description)
    return description
