"""Killed at any moment, or stopped by a full disk, the same command ends with the same bytes."""

import random
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from independent import ENVIRONMENT, TOOL, files, make_shards, render

KILLS = 20


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "clips"
    for n in range(8):
        render(folder / "ab"[n % 2] / f"{n}.avi", frames=24, size=(128, 96), seed=n)
    (folder / "a" / "broken.avi").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The data set's files, and the seconds it took here and now."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    start = time.monotonic()
    result = make_shards(*_arguments(videos, out))
    assert result.returncode == 0, result.stderr
    return files(out), time.monotonic() - start


def _arguments(videos: Path, out: Path) -> list[object]:
    return [videos, "--out", out, "--per-shard", 2, "--workers", 1, "--preset", "ultrafast"]


def test_twenty_kills_at_random_moments_change_nothing(
    videos: Path, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    moments = random.Random(0)

    def killed_and_restarted(number: int, delay: float) -> dict[str, bytes]:
        out = tmp_path / str(number) / "set"
        command = [sys.executable, str(TOOL), *map(str, _arguments(videos, out))]
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT
        ) as run:
            time.sleep(delay)
            run.kill()
        result = make_shards(*_arguments(videos, out))
        assert result.returncode == 0, result.stderr
        return files(out)

    delays = [moments.uniform(0.05, 1.1) * seconds for _ in range(KILLS)]
    with ThreadPoolExecutor(2) as pool:
        for number, made in enumerate(pool.map(killed_and_restarted, range(KILLS), delays)):
            assert made == expected, f"kill {number} after {delays[number]:.2f} s"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    videos: Path, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    expected, _ = undisturbed
    # a limit on file size stands for a disk that is full when the tar grows: clips fit under it, tars do not
    limit = max(len(data) for name, data in expected.items() if name.endswith(".tar")) - 4096
    command = [sys.executable, str(TOOL), *map(str, _arguments(videos, out))]
    full = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == 1 and "Traceback" not in full.stderr
    line = full.stderr.splitlines()[-1]
    assert line.startswith(f"error: {out}") and line.endswith("; the same command goes on from there"), line
    assert not (out / "dataset.json").exists()
    assert make_shards(*_arguments(videos, out)).returncode == 0
    assert files(out) == expected
