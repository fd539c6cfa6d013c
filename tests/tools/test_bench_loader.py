"""tools/bench_loader.py as a user types it, on a small rendered data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loader.dataloader_peer import check_torchcodec
from shards import InputError, demo
from tools.bench_loader import main

ROOT = Path(__file__).parents[2]
QUICK = ("--batches", "1", "--rounds", "1", "--batch-size", "2", "--threads", "2")


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/bench_loader.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.render(tmp_path_factory.mktemp("data") / "set", clips_per_class=(1, 1), frames=120)


def test_one_method_with_its_model(data: Path, tmp_path: Path) -> None:
    out, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    asked = ["--data", str(data), "--json", str(out), "--chart", str(chart), "--width", "0.03", "--autotune"]
    done = bench(*asked, "--sweep", "threads=1,2", *QUICK, SLIPSTREAM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    machine, (result,) = result["machine"], result["objectives"].values()
    for name in ("loader", "model", "together"):
        assert result[name]["clips_per_s"] > 0
    assert 0 <= result["together"]["wait_share"] <= 1
    assert 1 <= result["loader"]["frames_decoded_per_frame_used"] < 2
    assert 1 <= result["ceiling"]["frames_decoded_per_frame_used"] < 2
    assert machine["cores"] and result["memory"]["peak_rss_gib"] > 0
    parts, ceiling = result["parts"], result["ceiling"]
    serial = 1 / (1 / parts["decode_clips_per_s"] + 1 / parts["augment_clips_per_s"])
    assert parts["of_parts"] == pytest.approx(result["loader"]["clips_per_s"] / serial)
    assert ceiling["of_ceiling"] == pytest.approx(
        result["loader"]["clips_per_s"] / ceiling["decode_clips_per_s"]
    )
    assert [one["threads"] for one in result["sweep"]] == [1, 2]
    assert chart.read_bytes()[:4] == b"\x89PNG"
    noted = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    (found,) = next(iter(noted.values())).values()
    assert {name: found[name] for name in ("device", "threads", "prefetch")} == {
        name: result["tuned"][name] for name in ("device", "threads", "prefetch")
    }
    for words in ("loader alone", "libavcodec alone", "waits for data", "sweep threads=2", "tuned: --device"):
        assert words in done.stdout


def test_several_methods_against_a_peer(data: Path, tmp_path: Path) -> None:
    try:
        check_torchcodec()
    except InputError as error:
        pytest.skip(str(error))
    out = tmp_path / "bench.json"
    asked = ["--data", str(data), "--objective", "pace,dpc", "--small", "--no-model", "--json", str(out)]
    done = bench(*asked, "--against", "dataloader", "dali-readers", "--workers", "0", "1", *QUICK)
    assert done.returncode == 0, done.stderr
    blocks = json.loads(out.read_text())["objectives"]
    assert list(blocks) == ["pace", "dpc"]
    for block in blocks.values():
        peer = block["peers"]["dataloader"]
        assert "model" not in block and peer["workers"] in (0, 1) and peer["tried"].keys() == {"0", "1"}
        assert peer["ratio"] == pytest.approx(block["loader"]["clips_per_s"] / peer["clips_per_s"])
        assert peer["mean_difference_levels"] < 2
        assert "NVDEC" in block["peers"]["dali-readers"]["left_out"]
    assert "times as fast" in done.stdout and "left out: --against dali-readers" in done.stdout


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--objective", "dpc,nothing"], "--objective nothing: there is no such objective"),
        (["--sweep", "threads=0"], "--sweep threads=0: give threads="),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--json", "/nonexistent/bench.json"], "there is no folder /nonexistent"),
    ],
)
def test_bad_input_names_the_flag(data: Path, flags: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        main(["--data", str(data), *QUICK, *flags])


def test_bad_input_ends_in_one_line() -> None:
    done = bench("--data", "/nonexistent", *QUICK)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: /nonexistent: no such folder") and len(done.stderr.splitlines()) == 1
    )
