"""benchmarks/bench_memory.py as a user types it: a few hundred batches leave memory, threads and files as they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/bench_memory.py", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_memory_stays_flat_over_several_epochs(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    done = command("--batches", 400, "--settled", 100, "--epoch", 90, "--json", out)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(out.read_text())
    assert result["flat"] and result["growth"] <= 0.05
    assert result["constant"] == {"threads": True, "descriptors": True}
    assert result["epochs"] == 5 and len(result["first_batches_of_an_epoch_over_median"]) == 4
    assert [one["batch"] for one in result["seen"]] == list(range(4, 401, 4))
    later = [one for one in result["seen"] if one["batch"] >= 100]
    assert max(one["rss"] for one in later) / later[0]["rss"] - 1 == result["growth"]
    assert result["machine"]["cores"] and "bench_memory.py --batches 400" in result["command"]


def test_fewer_batches_than_settle_is_one_line() -> None:
    done = command("--batches", 50)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: --batches 50: must be at least 1001"), (
        done.stderr
    )
