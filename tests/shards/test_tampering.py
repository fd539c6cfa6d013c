"""A data set that was tampered with is read as what it says, or refused in one line: no traceback, no wait."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from independent import ENVIRONMENT, ROOT, run_tool, said
from tamper import ODD, cases_of_json, changed, line, places, watchdog

from shards import DamagedError, Dataset, InputError
from shards.check import check
from shards.check.repair import repair


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 13 rows with splits, and one sample quarantined."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("whole") / "small"))
    table = pq.read_table(folder / "samples.parquet")
    table = table.append_column("split", pa.array(["train", "test"] * 6 + ["train"]))
    pq.write_table(table, folder / "samples.parquet")
    (folder / "quarantine.jsonl").write_text('{"key": "nobody", "reason": "none"}\n')
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "small"))


def use(folder: Path) -> str:
    """Open, select, read every row and every column, check, repair: "", or the line it is refused with."""
    refused = ""
    with watchdog():
        try:
            dataset = Dataset(folder)
            for name in dataset._table.names:
                dataset.column(name)
            rows = dataset.select(split="train", min_frames=2)
            dataset.select(split="split:test", label_fraction=0.5)
            for row in rows[:3]:
                try:
                    dataset.read(row)
                    dataset.read(row, "json")
                except DamagedError as error:
                    refused = line(error)
            dataset.keys(rows)
        except InputError as error:
            refused = line(error)
        try:
            check(folder, fast=True)
            repair(folder)
        except InputError as error:
            line(error)
        if any(folder.glob("*.tar")):
            try:
                again = Dataset(folder)  # what repair has made opens, or says why not
                assert len(again) > 0
            except InputError as error:
                line(error)
    return refused


# ------------------------------------------------------------------------------------------------- the description


def test_each_value_of_the_description(copied: Path) -> None:
    path = copied / "dataset.json"
    before, table = json.loads(path.read_text()), (copied / "samples.parquet").read_bytes()
    count = refused = 0
    for content in cases_of_json(before):
        path.write_text(json.dumps(content))
        (copied / "samples.parquet").write_bytes(table)
        refused += bool(use(copied))
        count += 1
    assert count > 200 and refused > 100


@pytest.mark.parametrize("name", ["name", "classes", "tars"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: ascii(value)[:20])
def test_what_every_description_has(copied: Path, name: str, value: Any) -> None:
    path = copied / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    refused = use(copied)
    assert "dataset.json" in refused or "samples.parquet" in refused or (name == "name" and value == "日本")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"name": "x", "classes": ' + b"[" * 500 + b"]" * 500 + b', "tars": {}}',
        b'{"name": "x", "classes": [], "tars": {}, "rows": ' + b"9" * 5000 + b"}",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"\0" * 100,
        b'{"name": "x", "name": 3, "classes": [], "tars": {}}',
    ],
    ids=lambda content: ascii(content[:12]),
)
def test_descriptions_that_are_no_json_of_ours(copied: Path, content: bytes) -> None:
    (copied / "dataset.json").write_bytes(content)
    assert "dataset.json: " in use(copied)


def test_a_description_too_large_to_be_one_is_not_read(copied: Path) -> None:
    os.truncate(copied / "dataset.json", 2**40)  # a hole: it takes no room on the disk
    assert "more than the" in use(copied)


# --------------------------------------------------------------------------------------------------------- the table

N = 13
COLUMNS: dict[str, Any] = {
    "null": pa.nulls(N),
    "all_null_text": pa.array([None] * N, pa.string()),
    "one_null": pa.array([None, *range(1, N)], pa.int64()),
    "negative": pa.array([-1] * N, pa.int64()),
    "least": pa.array([-(2**63)] * N, pa.int64()),
    "most": pa.array([2**63 - 1] * N, pa.int64()),
    "unsigned": pa.array([2**64 - 1] * N, pa.uint64()),
    "zero": pa.array([0] * N, pa.int32()),
    "int8": pa.array([1] * N, pa.int8()),
    "int64": pa.array(range(1, N + 1), pa.int64()),
    "infinite": pa.array([float("inf")] * N),
    "nan": pa.array([float("nan")] * N),
    "float": pa.array([1.5] * N),
    "half": pa.array([np.float16(1)] * N, pa.float16()),
    "bool": pa.array([True] * N),
    "text": pa.array(["a"] * N),
    "different": pa.array([f"k{n}" for n in range(N)]),
    "empty": pa.array([""] * N),
    "newline": pa.array(["a\nb"] * N),
    "escape": pa.array(["\x1b[31m"] * N),
    "nul": pa.array(["a\0b"] * N),
    "long": pa.array(["x" * 10_000] * N),
    "path": pa.array(["/etc/passwd"] * N),
    "up": pa.array(["../x.tar"] * N),
    "nul_digits": pa.array(["\0" * 64] * N),
    "upper": pa.array(["A" * 64] * N),
    "zeros": pa.array(["0" * 64] * N),
    "large_string": pa.array(["a"] * N, pa.large_string()),
    "string_view": pa.array(["a"] * N, pa.string_view()),
    "binary": pa.array([b"\xff\xfe"] * N),
    "dictionary": pa.array(["a"] * N).dictionary_encode(),
    "dictionary_of_int8": pa.array(["a"] * N).cast(pa.dictionary(pa.int8(), pa.string())),
    "decimal": pa.array([Decimal("1.5")] * N),
    "timestamp": pa.array([0] * N, pa.timestamp("us")),
    "date": pa.array([0] * N, pa.date32()),
    "duration": pa.array([0] * N, pa.duration("s")),
    "list": pa.array([[1, 2]] * N),
    "empty_list": pa.array([[]] * N, pa.list_(pa.int64())),
    "struct": pa.array([{"a": 1}] * N),
    "map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
}
NAMES = (
    *(
        "key",
        "shard",
        "num_frames",
        "fps",
        "width",
        "height",
        "label",
        "label_name",
        "split",
        "source",
        "sha256",
    ),
    *(
        "mp4_offset",
        "mp4_size",
        "json_offset",
        "json_size",
        "flow.mp4_offset",
        "failure_time",
        "decoded_fraction",
    ),
)


def put(folder: Path, name: str, column: Any) -> None:
    table = pq.read_table(folder / "samples.parquet")
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    pq.write_table(table, folder / "samples.parquet")


@pytest.mark.parametrize("name", NAMES)
def test_each_column_as_something_else(whole: Path, tmp_path: Path, name: str) -> None:
    refused = set()
    for kind, column in COLUMNS.items():
        folder = Path(shutil.copytree(whole, tmp_path / kind))
        try:
            put(folder, name, column)
        except pa.ArrowException:  # what Parquet cannot hold, no file holds
            continue
        if use(folder):
            refused.add(kind)
        shutil.rmtree(folder)
    assert refused >= {"binary", "decimal", "timestamp", "list", "struct", "map", "bool"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("label_name", "source")])
def test_a_column_that_is_gone_or_there_twice(copied: Path, name: str) -> None:
    table = pq.read_table(copied / "samples.parquet")
    if name in table.column_names:
        pq.write_table(table.append_column(name, table.column(name)), copied / "samples.parquet")
        assert f"column '{name}' is there twice" in use(copied)
        pq.write_table(table.drop_columns([name]), copied / "samples.parquet")
        use(copied)


def test_another_number_of_rows_in_the_footer(copied: Path) -> None:
    """Parquet's own metadata may lie: the rows are counted."""
    content = (copied / "samples.parquet").read_bytes()
    lying = 0
    for place in range(len(content) - 4000, len(content)):
        new = content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :]
        lies = _rows_said(new) not in (None, (N, N))
        lying += lies
        if not lies and place % 5:  # of what says nothing of rows, a fifth
            continue
        (copied / "samples.parquet").write_bytes(new)
        with watchdog():
            try:
                dataset = Dataset(copied)
                for name in dataset._table.names:
                    dataset.column(name)
            except InputError as error:
                line(error)
    assert lying >= 2


def _rows_said(table: bytes) -> tuple[int, int] | None:
    """How many rows the file and its row group have by the metadata; None where these cannot be read."""
    try:
        found = pq.read_metadata(pa.BufferReader(table))
        return found.num_rows, found.row_group(0).num_rows
    except (pa.ArrowException, OSError, IndexError, ValueError):
        return None


def test_labels_above_the_classes_are_refused(copied: Path) -> None:
    put(copied, "label", pa.array([3] * N, pa.int32()))
    assert "column label: 3 is not from -1 to 2" in use(copied)


@pytest.mark.parametrize("garbage", [b"\xff\xfe" * 1000, b"\0" * 1000, b""])
def test_lines_of_the_quarantine(copied: Path, garbage: bytes) -> None:
    lines = [json.dumps(value) for value in ODD] + [json.dumps({"key": one}) for one in ODD]
    lines += [json.dumps({"key": "a", "reason": one}) for one in ODD] + ["[" * 10_000, "\x00", "{"]
    (copied / "quarantine.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + garbage)
    assert use(copied) == ""


# ---------------------------------------------------------------------------------------------------------- the tars


def truncated(tar: Path) -> None:
    os.truncate(tar, 700)


def emptied(tar: Path) -> None:
    os.truncate(tar, 0)


def a_pipe(tar: Path) -> None:
    tar.unlink()
    os.mkfifo(tar)


def a_device(tar: Path) -> None:
    tar.unlink()
    tar.symlink_to("/dev/zero")


def a_folder(tar: Path) -> None:
    tar.unlink()
    tar.mkdir()


def a_loop(tar: Path) -> None:
    tar.unlink()
    tar.symlink_to(tar.name)


def noise(tar: Path) -> None:
    tar.write_bytes(np.random.default_rng(0).bytes(tar.stat().st_size))


def endless_headers(tar: Path) -> None:
    """Each extended header is followed by another one: tarfile calls itself for each."""
    import tarfile

    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
    tar.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 5000 + bytes(1024))


def odd_names(tar: Path) -> None:
    import tarfile

    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as out:
        for name in (
            "/etc/x.mp4",
            "../x.mp4",
            "a\nb.mp4",
            "\udcff.mp4",
            ".mp4",
            "x" * 3000 + ".mp4",
            "a.json",
            "a.mp4",
        ):
            out.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize(
    "tamper",
    [truncated, emptied, a_pipe, a_device, a_folder, a_loop, noise, endless_headers, odd_names],
    ids=lambda tamper: tamper.__name__,
)
def test_each_way_to_tamper_with_a_tar(copied: Path, tamper: Callable[[Path], None]) -> None:
    tamper(sorted(copied.glob("*.tar"))[0])
    assert ".tar" in use(copied)


@pytest.mark.parametrize("tamper", [a_pipe, a_device, a_folder])
@pytest.mark.parametrize("flag", ["--fast", "--repair"])
def test_the_doctor_does_not_wait_for_a_pipe(copied: Path, tamper: Callable[[Path], None], flag: str) -> None:
    tamper(sorted(copied.glob("*.tar"))[0])
    result = run_tool(ROOT / "tools" / "check_shards.py", copied, flag, "--workers", 1)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr, result.stderr
    assert "small-000000.tar" in result.stdout and len(said(result)) <= 1


@pytest.mark.parametrize(
    "value", [v for v in ODD if not isinstance(v, float) or v == v], ids=lambda v: ascii(v)[:20]
)
@pytest.mark.parametrize("name", ["num_frames", "label", "sha256", "fps", "label_name", "split"])
def test_a_sample_with_other_facts_is_lost_or_repaired_into_what_opens(
    tmp_path: Path, name: str, value: Any
) -> None:
    from shards.tar import Sample, write_shard

    facts = {"num_frames": 3, "fps": 25.0, "width": 16, "height": 16, "source": "a", "label_name": "x"}
    out = tmp_path / "out"
    out.mkdir()
    write_shard(out, "out-000000", [Sample("a", b"video", facts), Sample("b", b"other", facts)])
    tar = next(out.glob("*.tar"))
    before = tar.read_bytes()
    old = json.dumps({"key": "b", **facts, "label": -1, "sha256": "0" * 64}, sort_keys=True)
    new = json.dumps({**json.loads(old), name: value}, sort_keys=True).encode()[: len(old)]
    place = before.rindex(b'{"fps"')
    tar.write_bytes(before[:place] + new.ljust(len(old)) + before[place + len(old) :])
    with watchdog():
        rows, lost = repair(out)
        assert rows + len(lost) == 2 and len(Dataset(out)) == rows


# ------------------------------------------------------------------------------------------------------- at random

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(ODD),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=5,
)
SLOW = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@SLOW
@given(data=st.data())
def test_any_value_anywhere_in_the_description(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = json.loads((whole / "dataset.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in places(content) if p]))
        content = changed(content, path, data.draw(values))
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("any") / "small"))
    (folder / "dataset.json").write_text(json.dumps(content))
    use(folder)
    shutil.rmtree(folder.parent)


KINDS = {
    st.integers(-(2**31), 2**64): [pa.int8(), pa.int32(), pa.int64(), pa.uint64()],
    st.floats(): [pa.float32(), pa.float64()],
    st.text(max_size=80): [pa.string(), pa.large_string()],
    st.binary(max_size=80): [pa.binary()],
}


@SLOW
@given(data=st.data())
def test_any_column_with_any_values(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    of = data.draw(st.sampled_from(list(KINDS)))
    kind, drawn = (
        data.draw(st.sampled_from(KINDS[of])),
        data.draw(st.lists(st.none() | of, min_size=N, max_size=N)),
    )
    try:
        column = pa.array(drawn, kind)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("any") / "small"))
    put(folder, data.draw(st.sampled_from(NAMES)), column)
    use(folder)
    shutil.rmtree(folder.parent)


@SLOW
@given(
    data=st.data(),
    name=st.sampled_from(["samples.parquet", "dataset.json", "small-000000.tar", "small-000000.idx"]),
)
def test_any_bytes_anywhere(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("any") / "small"))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    use(folder)
    shutil.rmtree(folder.parent)


# --------------------------------------------------------------------------------------------- what is opened

WATCHED = """
import os, sys
from pathlib import Path
from shards import Dataset, InputError
from shards.check import check
folder, note = Path(sys.argv[1]), open(sys.argv[2], "w")
import shards.remote
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
try:
    dataset = Dataset(folder)
    for row in dataset.select(): dataset.read(row)
except (InputError, OSError) as error:
    print(error)
try: check(folder, fast=True)
except InputError as error: print(error)
note.write("\\n".join(os.fspath(one) for one in opened if not isinstance(one, int)))  # a number was opened before
"""


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.tar", "../../secret.tar", "..", "small-000000.tar"]
)
@pytest.mark.parametrize("where", ["table", "description", "both"])
def test_nothing_outside_the_folder_is_opened(copied: Path, tmp_path: Path, name: str, where: str) -> None:
    (tmp_path / "secret.tar").write_bytes(b"secret" * 10_000)
    info = json.loads((copied / "dataset.json").read_text())
    if where != "description":
        put(copied, "shard", pa.array([name] * N))
    if where != "table":
        info["tars"][name] = {"bytes": 60_000, "sha256": "0" * 64}
        (copied / "dataset.json").write_text(json.dumps(info))
    note = tmp_path / "opened"
    command = [sys.executable, "-B", "-c", WATCHED, str(copied), str(note)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    opened = note.read_text().splitlines()
    code = (
        sys.prefix,
        sys.base_prefix,
        str(ROOT),
        "/proc/",
        "/sys/",
        "/usr/",
    )  # modules that are imported later
    strange = [path for path in opened if not Path(path).is_relative_to(copied) and not path.startswith(code)]
    assert not strange, strange
    assert any(path.endswith("dataset.json") for path in opened)
