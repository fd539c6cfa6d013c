"""Tampering with what lies on a disk, and the two things that must not come of it: a traceback and a wait."""

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = 20  # after which a case hangs


@contextmanager
def watchdog() -> Iterator[None]:
    """Fail what takes longer than SECONDS; end the process should even that not help."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"hangs for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def line(error: Exception) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1 and text.isprintable() and len(text) < 1500, text
    text.encode()
    return text


TEXTS: list[Any] = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "\ud800",
    "x" * 100_000,
    "\x1b[31m",
    "日本",
]
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**400,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    True,
]
ODD: list[Any] = [None, [], {}, [[]], {"a": 1}, [None], ["a", 1], *TEXTS, *NUMBERS]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies in JSON: every value at every depth."""
    yield path
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    if len(path) > 1:
        copy = value.copy()
        copy[path[0]] = without(value[path[0]], path[1:])
        return copy
    return {key: one for key, one in value.items() if key != path[0]}


def cases_of_json(content: Any) -> Iterator[Any]:
    """Each value replaced by one of another kind, by an extreme one, or left out."""
    for number, path in enumerate(places(content)):
        for step in (0, 7, 11, 17):
            yield changed(content, path, ODD[(step * number + step) % len(ODD)])
        if path and isinstance(path[-1], str):
            yield without(content, path)
