#!/usr/bin/env python3
"""What survives? Commands are killed at random moments, started again, and compared with an undisturbed run.

    benchmarks/chaos.py --minutes 60 --json benchmarks/results/DATE-MACHINE-chaos.json
    benchmarks/chaos.py --minutes 5 --tasks train make_shards --seed 3

A trial disturbs one command one to four times: a signal at a random moment to the command itself, to one of the processes that it
started, or to all of them; or a byte of the newest checkpoint changed. Then the same command runs to its end. Its results
have to be byte for byte those of the undisturbed run. A command that does not end within a minute of a signal, or a process that outlives it by
ten seconds, is a failure too. Tracebacks are noted: Python's own, while it imports, and the launcher's. The exit status is 1 if
anything failed.
"""

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import tyro
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from benchmarks.report import origin
from objectives.checkpoint import code_version
from shards import Dataset, at_least, demo, one_line
from shards.documents import write_json

ROOT = Path(__file__).parents[1]
Name = Literal[
    "train", "train-processes", "train-2-ranks", "train-remote", "make_shards", "make_shards-parts"
]
STEPS = 8
ENDS_WITHIN, OUTLIVES = 60, 10  # seconds
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Arguments:
    """What is disturbed, and for how long."""

    minutes: float = 60.0
    """No trial begins later than this."""
    tasks: tuple[Name, ...] = get_args(Name)
    """Commands that take turns."""
    seed: int = 0
    """Of what is done when; moments still depend on the machine's speed."""
    json: Path | None = None
    """Write the verdict here."""


@dataclass(frozen=True)
class Task:
    """commands: an output folder → command lines, which run one after another and can each be started again.
    results: that folder → what has to be equal, name by name. environment: an output folder → further variables."""

    commands: Callable[[Path], list[list[str]]]
    results: Callable[[Path], dict[str, str]]
    environment: Callable[[Path], dict[str, str]] = lambda _: {}


@dataclass
class Verdict:
    """What happened to the trials of a task. seconds: an undisturbed run takes."""

    seconds: float
    trials: int = 0
    identical: int = 0
    disturbed: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def main(argv: list[str]) -> None:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    at_least(arguments, 0, "minutes", "seed")
    began, rng = time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tasks, verdicts = make_tasks(Path(folder), rng), dict[str, Verdict]()
        expected: dict[str, dict[str, str]] = {}
        for name in arguments.tasks:
            out, started = Path(folder) / name / "whole", time.monotonic()
            run(tasks[name], out)
            verdicts[name] = Verdict(round(time.monotonic() - started, 1))
            expected[name] = tasks[name].results(out)
        while time.monotonic() - began < 60 * arguments.minutes:
            for name in arguments.tasks:
                out = Path(folder) / name / "disturbed"
                disturb(tasks[name], out, verdicts[name], rng)
                finish(tasks[name], out, verdicts[name], expected[name])
                shutil.rmtree(out, ignore_errors=True)
                print(f"{(time.monotonic() - began) / 60:5.1f} min  {name}: {verdicts[name].identical} of "
                      f"{verdicts[name].trials} identical, {verdicts[name].disturbed.total()} disturbances", flush=True)  # fmt: skip
    result = origin("benchmarks/chaos.py", argv) | {
        "code": code_version(),
        "disturbances": sum(verdict.disturbed.total() for verdict in verdicts.values()),
        "tasks": {name: vars(verdict) for name, verdict in verdicts.items()},
    }
    if arguments.json:
        write_json(arguments.json, result)
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict.identical} of {verdict.trials} trials identical; {dict(verdict.disturbed)}")
        print("".join(f"  {failure}\n" for failure in verdict.failures), end="")
    if any(verdict.failures for verdict in verdicts.values()):
        sys.exit(1)


def make_tasks(folder: Path, rng: random.Random) -> dict[str, Task]:
    data = demo.render(folder / "data", clips_per_class=(2, 1), frames=40, workers=2)
    dataset, videos = Dataset(data), folder / "videos"
    for row, key in enumerate(dataset.keys(range(len(dataset)))):
        (videos / f"class{row % 3}").mkdir(parents=True, exist_ok=True)
        (videos / f"class{row % 3}" / f"{key}.mp4").write_bytes(dataset.read(row))
    flags = ["--objective", "pace", "--small", "--width", "0.05", "--size", "32", "--paces", "1", "2", "--batch-size", "4",
             "--steps", str(STEPS), "--checkpoint-every", "1", "--keep", "2", "--device", "cpu", "--threads", "2", "--resume"]  # fmt: skip

    def train(out: Path, *more: str, source: str = str(data)) -> list[str]:
        return [sys.executable, "train.py", *flags, "--data", source, "--output", str(out / "run"), *more]

    def ranks(out: Path) -> list[list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", port]
        python, *rest = train(out)
        return [[python, "-m", *launch, *rest]]

    def shards(out: Path, *more: str) -> list[str]:
        return [sys.executable, "tools/make_shards.py", str(videos), "--out", str(out / "set"), "--per-shard", "4", "--workers", "2",
                "--short-side", "96", *more]  # fmt: skip

    def parts(out: Path) -> list[list[str]]:
        merge = [sys.executable, "tools/merge_shards.py", str(out / "set")]
        return [shards(out, "--part", "1/2"), shards(out, "--part", "2/2"), merge]

    url = bad_server(data, rng.randrange(2**31))
    return {
        "train": Task(lambda out: [train(out)], _run_results),
        "train-processes": Task(lambda out: [train(out, "--decode-with", "processes")], _run_results),
        "train-2-ranks": Task(ranks, _run_results),
        "train-remote": Task(
            lambda out: [train(out, source=url)], _run_results, lambda out: {"SLIPSTREAM_CACHE": str(out / "cache")}
        ),
        "make_shards": Task(lambda out: [shards(out)], _shard_results),
        "make_shards-parts": Task(parts, _shard_results),
    }  # fmt: skip


def run(task: Task, out: Path) -> None:
    """All commands of a task, undisturbed; raises RuntimeError where one fails."""
    for command in task.commands(out):
        process = Started(command, task.environment(out))
        if process.wait(600):
            raise RuntimeError(f"status {process.returncode}: {' '.join(command)}\n{process.said}")


class Started(subprocess.Popen[bytes]):
    """A command in a session of its own. said: the end of its output."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        settings = {
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        } | environment
        self._log = log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the command)
        super().__init__(command, cwd=ROOT, env=os.environ | settings, start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip

    @property
    def said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


def disturb(task: Task, out: Path, verdict: Verdict, rng: random.Random) -> None:
    """Start the commands and stop them, one to four times."""
    verdict.trials += 1
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.2 and (damaged := _damage(out, rng)):
            verdict.disturbed[f"damaged {damaged}"] += 1
        moment = rng.uniform(0, verdict.seconds)
        for command in task.commands(out):
            began = time.monotonic()
            process = Started(command, task.environment(out))
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                _strike(process, command, verdict, rng)
                break
            moment -= time.monotonic() - began


def _strike(process: Started, command: list[str], verdict: Verdict, rng: random.Random) -> None:
    number = rng.choice(SIGNALS)
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        children = leader.children(recursive=True)
        target = rng.choice(("the command", "a child", "all")) if children else "the command"
        for victim in {
            "the command": [leader],
            "a child": [rng.choice(children)] if target == "a child" else [],
            "all": [leader, *children],
        }[target]:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(number)
        verdict.disturbed[f"{number.name} to {target}"] += 1
        name = f"{Path(command[1]).name}, {number.name} to {target}"
        try:
            # a child that ends may be replaced: then the command runs to its own end
            status = process.wait(ENDS_WITHIN + (10 * verdict.seconds if target == "a child" else 0))
            verdict.statuses[f"{number.name} to {target}: {status}"] += 1
        except subprocess.TimeoutExpired:
            verdict.failures.append(f"{name}: it did not end")
        deadline = time.monotonic() + OUTLIVES
        while (left := _session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            verdict.failures.append(f"{name}: left behind {left}")
        if "Traceback" in (said := process.said):
            verdict.tracebacks[f"{name}: {said.strip().splitlines()[-1][:100]}"] += 1
    left = _session(process.pid)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs([one for one in left if one.pid != process.pid])


def finish(task: Task, out: Path, verdict: Verdict, expected: dict[str, str]) -> None:
    """Run the commands to their end and compare."""
    try:
        run(task, out)
        found = task.results(out)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        verdict.failures.append(f"started again, it failed: {error}")
        return
    if differing := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        verdict.failures.append(f"differs in {differing}")
    else:
        verdict.identical += 1


def _damage(out: Path, rng: random.Random) -> str | None:
    """Change a byte of a file of the newest of two checkpoints or more. Returns the file's name."""
    checkpoints = sorted((out / "run" / "checkpoints").glob("step-*"))
    files = sorted(file for folder in checkpoints[-1:] for file in folder.iterdir() if file.stat().st_size)
    if len(checkpoints) < 2 or not files:
        return None
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file.name


def _run_results(out: Path) -> dict[str, str]:
    """Digests of the tensors of the last checkpoint and the encoder, and the losses."""
    last = out / "run" / "checkpoints" / f"step-{STEPS:08d}"
    found = {}
    for file in (last / "model.safetensors", last / "optimizer.safetensors", out / "run/encoder.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = sorted(tensors.keys())
            content = b"".join(name.encode() + tensors.get_tensor(name).numpy().tobytes() for name in names)
        found[file.name] = hashlib.sha256(content).hexdigest()
    return found


def _shard_results(out: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((out / "set").iterdir())
        if file.suffix in {".tar", ".idx", ".parquet"}
    }


def bad_server(folder: Path, seed: int) -> str:
    """The URL of a folder whose server answers one request in six with an error, half of the file, or late."""
    rng, lock = random.Random(seed), threading.Lock()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                self.trouble = rng.choice(("503", "cut", "late", *[""] * 15))
            if self.trouble == "503":
                return self.send_error(503)
            if self.trouble == "late":
                time.sleep(1)
            with suppress(ConnectionError):
                return super().do_GET()

        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            outputfile.write(content[: len(content) // 2] if self.trouble == "cut" else content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def _session(leader: int) -> list[psutil.Process]:
    """Processes of a session that run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
