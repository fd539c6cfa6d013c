"""tools/bench_loader.py on a GPU: the figures that a CPU has not, and every peer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.backends import BACKENDS, choose_backend
from shards import InputError, demo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run(tmp_path: Path, backend: str) -> None:
    try:
        choose_backend(backend)
    except InputError as error:
        pytest.skip(str(error))
    data = demo.render(tmp_path / "set", clips_per_class=(1, 1), frames=130, workers=2)
    out = tmp_path / "bench.json"
    asked = [
        "--data",
        str(data),
        "--objective",
        "dpc,vdim",
        "--small",
        "--device",
        backend,
        "--json",
        str(out),
    ]
    quick = ["--batches", "1", "--rounds", "1", "--batch-size", "2", "--against", "dali-readers"]
    done = subprocess.run(
        [sys.executable, "tools/bench_loader.py", *asked, *quick, "--sweep", "device=cpu,hybrid,gpu"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for block in json.loads(out.read_text())["objectives"].values():
        assert block["backend"] == backend and block["memory"]["peak_cuda_gib"] > 0
        assert block["parts"]["copy"]["gib_per_s"] > 0 and block["parts"]["of_parts"] > 0
        on_gpu = "nvdec" in BACKENDS[backend].timed
        for name in ("trim", "nvdec", "graph"):
            assert (f"{name}_clips_per_s" in block["parts"]) == on_gpu
        assert ("ratio" in block["peers"]["dali-readers"]) == on_gpu
