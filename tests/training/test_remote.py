"""A run whose data comes from a server that stalls ends when it is told to."""

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from loopback import Server, stalling

from tests.training import harness
from tests.training.harness import TOY

pytest.importorskip("aiohttp", reason="needs the extra `remote`")


def test_a_signal_ends_a_run_that_waits_for_a_server(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(harness, "LIMIT", 60)  # seconds: within a minute
    shutil.copytree(data, tmp_path / "served" / "set")
    server, over, asked = Server(tmp_path / "served"), threading.Event(), threading.Event()
    for tar in data.glob("*.tar"):
        server.trouble[tar.name] = stalling(over, asked)
    try:
        run = tmp_path / "run"
        started = harness.start(*TOY, "--data", f"{server.url}/set", "--output", run, "--steps", 3)
        assert asked.wait(60), started.said()
        time.sleep(0.5)  # it waits for the rest by then
        started.signal(signal.SIGTERM)
        done = started.end()
        assert done.status == 128 + signal.SIGTERM and "Traceback" not in done.said, done.said
        assert "stopped by SIGTERM: no data came" in done.said
    finally:
        over.set()
        server.close()
