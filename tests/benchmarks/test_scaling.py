"""benchmarks/bench_scaling.py: its figures against the formula, and where its rate may come from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import objectives
from benchmarks import bench_scaling
from shards import Dataset, InputError


def test_the_figures_are_those_of_the_formula(
    rendered: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.json"
    block = {"settings": {"objective": "dpc"}, "together": {"clips_per_s": 2e6}}
    bench.write_text(json.dumps({"machine": {"gpu": "NVIDIA H100", "cpu": ""}, "objectives": {"dpc": block}}))
    flags = ["--data", str(rendered.path), "--objective", "dpc", "--small", "--batch-size", "4"]
    bench_scaling.main([*flags, "--bench", str(bench), "--gpus", "8", "16", "--clips-per-decode", "2"])
    said = capsys.readouterr().out
    assert "2e+06 clips/s a GPU (measured, together:" in said and "NVIDIA H100" in said
    sizes = np.mean([len(rendered.read(row)) for row in range(4)])
    dpc = objectives.get("dpc")
    parameters = sum(p.numel() for p in dpc(dpc.small()).parameters())
    for line, (gpus, nodes) in zip(said.splitlines()[-2:], ((8, 1), (16, 2)), strict=True):
        _, clips, reading, node, gradients, _ = map(
            float, re.findall(r"[\d.]+", re.sub("GPUs|,", "", line))[:6]
        )
        assert clips == gpus * 2e6
        assert reading == pytest.approx(gpus * 2e6 * sizes / 2 / 1e6, abs=0.5)
        assert node == pytest.approx(gpus * 2e6 * sizes / 2 / nodes * 8 / 1e9, abs=0.006)
        expected = 8 * 2 * (gpus - 1) / gpus * 4 * parameters * 2e6 / 4 / 1e9 if nodes > 1 else 0
        assert gradients == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--bench FILE or --clips-per-s"),
        (["--clips-per-s", "0"], "--clips-per-s 0: must be above 0"),
        (["--clips-per-s", "9", "--gpus", "0"], "--gpus"),
        (["--bench", __file__], "holds no training rate of dpc"),
        (["--clips-per-s", "9", "--split", "test2"], "test2"),
    ],
)
def test_mistakes_name_the_flag(rendered: Dataset, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_scaling.main(["--data", str(rendered.path), "--objective", "dpc", *flags])
