"""A checkpoint, a run's logs and a machine's tuned flags that were tampered with: used, or refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tamper import ODD, cases_of_json, changed, line, places, watchdog

import objectives
from objectives import Objective, checkpoint
from shards import InputError
from tests.training.harness import TOY, train
from training import speed as loader_speed
from training.log import Log, read_metrics
from training.run import refuse_changes
from training.settings import with_own_flags
from training.state import State, read_rows

IDENTITY = {"data": "set 0123", "seed": 0, "global_batch": 4, "val_split": None, "clip_norm": 1.0}
PROGRESS = {"step": 1, "loader": {"samples": 4}, "evaluators": {}}
SMALL = {
    "dpc": {"network": "resnet2d3d_18", "width": 0.0625},  # trains with Adam
    "pace": {"backbone": "r3d", "width": 0.0625},  # with SGD
}
PLACE = Path("checkpoints/step-00000001")


def make(name: str) -> State:
    """A network and its optimizer, after one step."""
    torch.manual_seed(0)
    method = objectives.get(name)
    objective: Objective = method(method.Config(**SMALL[name]))
    return stepped(State(objective, objective.optimizer()))


def stepped(state: State) -> State:
    for parameter in state.objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state


@pytest.fixture(scope="module", params=list(SMALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint."""
    run = tmp_path_factory.mktemp("run") / "run"
    make(name).save(run / PLACE, IDENTITY, PROGRESS, ["a", "b"])
    checkpoint.save_weights(run / PLACE / "ema.safetensors", make(name).objective)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n')
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def use(run: Path, name: str) -> str:
    """What --resume, --init-from and evaluation read: "", or the lines that it is refused with."""
    state, refused = make(name), []
    now = {"objective": name} | asdict(state.objective.config) | IDENTITY
    for read in (
        lambda: checkpoint.newest(run),
        lambda: objectives.load(run / PLACE),
        lambda: refuse_changes(run / PLACE, now),
        lambda: read_rows(run / PLACE),
        lambda: stepped(state) if state.load(run / PLACE, {"evaluators": {}}) else None,
        lambda: Log(run, 1).close(),
    ):
        with watchdog():
            try:
                read()
            except InputError as error:
                refused.append(line(error))
    return "\n".join(refused)


def test_what_was_not_tampered_with_is_read(run: Path, name: str) -> None:
    assert use(run, name) == ""
    assert read_metrics(run / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("file", ["config.json", "state.json", "files.json"])
def test_each_value_of_its_json(run: Path, name: str, file: str) -> None:
    path = run / PLACE / file
    content = json.loads(path.read_text())
    if file == "state.json":
        content["optimizer"]["param_groups"][0]["params"] = content["optimizer"]["param_groups"][0]["params"][
            :2
        ]
    refused = count = 0
    for case in list(cases_of_json(content))[::2]:
        path.write_text(json.dumps(case))
        refused += bool(use(run, name))
        count += 1
    assert count > 10 and (refused > count / 3 or file == "files.json")


@pytest.mark.parametrize(
    "file", ["config.json", "state.json", "files.json", "rows.txt", "../../metrics.jsonl"]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe\0", b"\0" * 100, b'"\\ud800"', b"9" * 5000],
    ids=lambda content: ascii(content[:8]),
)
def test_other_content(run: Path, name: str, file: str, content: bytes) -> None:
    (run / PLACE / file).write_bytes(content)
    use(run, name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def hole(path: Path) -> None:
    os.truncate(path, 2**42)


FILES = ["config.json", "state.json", "files.json", "rows.txt", "model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize("file", [*FILES, "ema.safetensors", "../../metrics.jsonl"])
@pytest.mark.parametrize("tamper", [pipe, device, folder, hole])
def test_what_is_no_file_or_far_too_large(
    run: Path, name: str, file: str, tamper: Callable[[Path], None]
) -> None:
    tamper(run / PLACE / file)
    assert Path(file).name in use(run, name) or file == "files.json"


def header(path: Path, change: Callable[[dict], object]) -> None:
    """Change the JSON that a safetensors file begins with."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + size])
    new = change(said)
    new = json.dumps(said if new is None else new).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])


def first(said: dict) -> dict:
    return said[min(key for key in said if key != "__metadata__")]


HEADERS: dict[str, Callable[[dict], object]] = {
    "past the end": lambda said: first(said).update(data_offsets=[0, 2**60]),
    "negative": lambda said: first(said).update(data_offsets=[-1, 4]),
    "backwards": lambda said: first(said).update(data_offsets=[8, 4]),
    "shape too large": lambda said: first(said).update(shape=[2**62, 2**62]),
    "shape negative": lambda said: first(said).update(shape=[-1]),
    "no shape": lambda said: first(said).pop("shape"),
    "unknown dtype": lambda said: first(said).update(dtype="F3"),
    "dtype of eight bits": lambda said: first(said).update(dtype="F8_E4M3"),
    "dtype is a list": lambda said: first(said).update(dtype=[]),
    "a name without end": lambda said: said.update({"x" * 10_000: first(said)}),
    "a name of control characters": lambda said: said.update({"a\n\x1b[31m": {**first(said)}}),
    "empty": lambda said: {},
    "a list": lambda said: [],
    "null": lambda said: 0,
    "metadata": lambda said: said.update(__metadata__={"a": 1}),
    "deep": lambda said: said.update(a=json.loads("[" * 900 + "]" * 900)),
}


@pytest.mark.parametrize("file", ["ema.safetensors", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_each_way_to_change_a_header(
    run: Path, name: str, file: str, change: Callable[[dict], object]
) -> None:
    header(run / PLACE / file, change)
    assert file in use(run, name)


@pytest.mark.parametrize("size", [0, 7, 2**27, 2**63, 2**64 - 1])
def test_a_header_of_another_length(run: Path, name: str, size: int) -> None:
    for file in ("ema.safetensors", "optimizer.safetensors"):
        path = run / PLACE / file
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
        assert file in use(run, name)


TENSORS: dict[str, Callable[[torch.Tensor], object]] = {
    "another shape": lambda value: torch.zeros(*value.shape, 2),
    "one number": lambda value: torch.zeros((), dtype=value.dtype) if value.dim() else torch.zeros(3),
    "none": lambda value: torch.zeros(0),
    "whole numbers": lambda value: torch.zeros(value.shape, dtype=torch.int64),
    "complex": lambda value: torch.zeros(value.shape, dtype=torch.complex64),
    "truth": lambda value: torch.zeros(value.shape, dtype=torch.bool),
    "eight bits": lambda value: torch.zeros(value.shape).to(torch.float8_e4m3fn),
    "not a number": lambda value: torch.full(value.shape, float("nan")),
    "infinite": lambda value: torch.full(value.shape, -float("inf")),
    "gone": lambda value: None,
}


@pytest.mark.parametrize("file", ["ema.safetensors", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_each_tensor_of_another_kind(
    run: Path, name: str, file: str, change: Callable[[torch.Tensor], object]
) -> None:
    tensors = load_file(run / PLACE / file)
    kinds = {
        key.rpartition(".")[2]: key for key in tensors
    }  # one of each: weight, running_var, exp_avg, step …
    for key in kinds.values():
        new = change(tensors[key])
        if key.endswith("num_batches_tracked") and (new is None or new.dtype == tensors[key].dtype):
            continue  # torch counts anew where it is gone, and a whole number is what it is
        if new is None and len(kinds) == 1:
            continue  # of SGD: the parameter was never stepped
        rest = {other: value for other, value in tensors.items() if other != key}
        save_file(rest if new is None else rest | {key: new}, run / PLACE / file)
        assert file in use(run, name), key


@pytest.mark.parametrize(
    "key", ["x", "-1.exp_avg", "1e3.exp_avg", "999999.exp_avg", "0.", ".exp_avg", "²._", "0.odd\n"]
)
def test_an_entry_of_no_parameter(run: Path, name: str, key: str) -> None:
    path = run / PLACE / "optimizer.safetensors"
    save_file(load_file(path) | {key: torch.zeros(1)}, path)
    assert "optimizer.safetensors" in use(run, name)


def test_sizes_of_files_elsewhere_are_not_asked_for(run: Path) -> None:
    (run / PLACE / "files.json").write_text(
        json.dumps({"../../../outside": {"bytes": 3, "sha256": "0" * 64}})
    )
    (run.parent / "outside").write_text("abc")
    with pytest.raises(InputError, match=r"none of its checkpoints is whole .*a plain file name"):
        checkpoint.newest(run)


RANDOM = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@RANDOM
@given(data=st.data(), file=st.sampled_from([*FILES, "ema.safetensors", "../../metrics.jsonl"]))
def test_any_bytes_anywhere(whole: Path, name: str, tmp_path: Path, data: st.DataObject, file: str) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "any", dirs_exist_ok=True))
    content = bytearray((run / PLACE / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 4000) - 1))  # headers are at the front
        content[place] = data.draw(st.integers(0, 255))
    (run / PLACE / file).write_bytes(
        content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    )
    use(run, name)


def test_an_objective_that_there_is_not_is_named_with_its_file(run: Path, name: str) -> None:
    for file in (run / PLACE / "config.json", run / "config.json"):
        content = json.loads((run / PLACE / "config.json").read_text())
        file.write_text(json.dumps(content | {"objective": "\U00018cd6"}))
    changed_file, *refused = use(run, name).splitlines()
    assert "none of its checkpoints is whole" in changed_file
    assert len(refused) == 2 and all(f"{PLACE}/config.json does not describe" in one for one in refused)
    with pytest.raises(InputError, match=r"run/config.json does not describe an objective") as found:
        with_own_flags(["--resume", str(run)])
    line(found.value)


@RANDOM
@given(data=st.data())
def test_any_value_anywhere_in_the_config(
    whole: Path, name: str, tmp_path: Path, data: st.DataObject
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "any", dirs_exist_ok=True))
    content = json.loads((run / PLACE / "config.json").read_text())
    path = data.draw(st.sampled_from([place for place in places(content) if place]))
    new = data.draw(
        st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.sampled_from(ODD)
    )
    (run / PLACE / "config.json").write_text(json.dumps(changed(content, path, new)))
    use(run, name)


@pytest.mark.parametrize("case", range(40))
def test_flags_that_were_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: int) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    spec = objectives.get("dpc").view_spec(objectives.get("dpc").Config())
    path = loader_speed.note_tuned("dpc", spec, {"device": "cpu", "threads": 3, "prefetch": 4})
    cases = list(cases_of_json(json.loads(path.read_text())))
    for content in cases[case::40]:
        path.write_text(json.dumps(content))
        with watchdog():
            try:
                loader_speed.find_tuned("dpc", spec)
            except InputError as error:
                assert "tuned.json" in line(error) and "remove it" in line(error)


def test_tuned_flags_are_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    os.mkfifo(tmp_path / loader_speed.TUNED)
    with watchdog(), pytest.raises(InputError, match=r"tuned.json: is not a regular file.*remove it"):
        loader_speed.find_tuned("dpc", objectives.get("dpc").view_spec(objectives.get("dpc").Config()))


@pytest.mark.parametrize("file", ["config.json", "state.json", "rows.txt", "optimizer.safetensors"])
def test_resuming_does_not_wait_for_a_pipe(data: Path, tmp_path: Path, file: str) -> None:
    """By the command that a user types."""
    run = ("--output", tmp_path / "run", "--data", data)
    assert train(*TOY, "--batch-size", 2, "--steps", 1, *run).status == 0
    pipe(tmp_path / "run" / PLACE / file)
    done = train(*TOY, "--batch-size", 2, "--steps", 2, *run, "--resume")
    assert done.status == 2 and "Traceback" not in done.said and file in done.said, done.said
