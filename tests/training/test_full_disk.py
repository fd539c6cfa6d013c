"""Every write of a run fails once: each run ends in one line, and nothing that was whole is lost.

A library that is loaded first (fault.c) counts what writes below a folder, and lets the k-th of it fail, for every k: the
odd ones as on a full disk, the even ones as on one that has become read only.
"""

import ctypes
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.harness import BASE, TOY, losses

ROOT = Path(__file__).parents[2]
FLAGS = (*BASE, *TOY, "--batch-size", "4", "--checkpoint-every", "1", "--keep", "1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("faults are made by a library in C, and there is no C compiler (cc)")
    library = tmp_path_factory.mktemp("fault") / "fault.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("fault.c"), "-ldl"],
        check=True,
    )
    return library


@pytest.mark.parametrize("code", ["ENOSPC", "EROFS"])
def test_every_write_of_a_run_can_fail(data, tmp_path, library, code) -> None:
    """From the k-th on all fail, as on a disk that is full or was mounted again to be read only."""
    command = [sys.executable, "-m", "tests.training.test_full_disk", library, data, tmp_path, code]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "LD_PRELOAD": str(library),
    }
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{code}: every other one of {found['writes']} writes; {found['lines']} runs ended in one line")
    assert found["writes"] > 40 and found["lines"] > 0.4 * found["writes"], found


def run_all(library: str, data: str, folder: str, code: str) -> None:
    """In a process with the library: a run from a whole checkpoint of step 1 to step 2, for every k."""
    from tests.training import preloaded

    assert preloaded
    fault = ctypes.CDLL(library)
    fault.count.restype = ctypes.c_long
    arm = lambda path, number: fault.arm(os.fsencode(path), ctypes.c_long(number), getattr(errno, code), 0)  # noqa: E731
    begun, whole = Path(folder, f"{code}-begun"), Path(folder, f"{code}-whole")
    assert forked(folder, lambda: None, data, begun, "1")[0] == 0
    shutil.rmtree(begun / "tensorboard")
    for name in ("first_batch.png", "encoder.safetensors"):  # written again by a run that goes on
        (begun / name).unlink()
    shutil.copytree(begun, whole)
    counted = Path(folder, f"{code}-count")
    finish = lambda: counted.write_text(str(fault.count()))  # noqa: E731
    status, said = forked(folder, lambda: arm(whole, 0), data, whole, "2", finish)
    assert status == 0, said
    count, lines, well = int(counted.read_text()), 0, 0
    for k in range(1 if code == "ENOSPC" else 2, count + 1, 2):
        run = Path(folder, f"{code}-{k}")
        shutil.copytree(begun, run)
        status, said = forked(folder, lambda run=run, k=k: arm(run, k), data, run, "2")
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in said, f"write {k}: {said}"
        assert (status, len(errors)) in ((2, 1), (0, 0)), f"write {k}: {status} {said}"
        well, lines = well + (status == 0), lines + (status == 2)

        from training.state import last_whole

        assert last_whole(run), f"write {k} lost the checkpoint"
        if k % 8 in (1, 2):  # what is left is as good as before: the run goes on to the same end
            again, said_again = forked(folder, lambda: None, data, run, "2")
            assert again == 0, f"write {k}, resumed: {said_again}"
            assert losses(run) == losses(whole), f"write {k}"
            assert (run / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
        shutil.rmtree(run)
    print(json.dumps({"writes": count, "lines": lines, "ended_well": well}))


def forked(folder, begin, data, run, steps, finish=lambda: None) -> tuple[int, str]:
    """Status and words of a run in a forked process."""
    log = Path(folder, "log")

    def child() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        import train
        from training.processes import ended

        begin()
        flags = [*FLAGS, "--data", data, "--output", str(run), "--steps", steps, "--resume"]
        status = ended(train.main, flags)
        finish()
        os._exit(status)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode is not None, log.read_text()
    return process.exitcode, log.read_text()


if __name__ == "__main__":
    run_all(*sys.argv[1:])
