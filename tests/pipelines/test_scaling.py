"""tools/scaling.py: its figures against the formula, and where its rate may come from."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import objectives
from shards import Dataset, InputError

TOOL = Path(__file__).parents[2] / "tools" / "scaling.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_of_the_formula(
    tool: ModuleType, demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.json"
    block = {"settings": {"objective": "dpc"}, "together": {"clips_per_s": 2e6}}
    bench.write_text(json.dumps({"machine": {"gpu": "NVIDIA H100", "cpu": ""}, "objectives": {"dpc": block}}))
    flags = ["--data", str(demo_folder), "--objective", "dpc", "--small", "--batch-size", "4"]
    tool.main([*flags, "--bench", str(bench), "--gpus", "8", "16", "--clips-per-decode", "2"])
    said = capsys.readouterr().out
    assert "2e+06 clips/s a GPU (measured, together:" in said and "NVIDIA H100" in said
    sizes = np.mean([len(Dataset(demo_folder).read(row)) for row in range(18)])
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
        (["--bench", str(TOOL)], "holds no training rate of dpc"),
        (["--clips-per-s", "9", "--split", "test2"], "test2"),
    ],
)
def test_mistakes_name_the_flag(tool: ModuleType, demo_folder: Path, flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tool.main(["--data", str(demo_folder), "--objective", "dpc", *flags])
