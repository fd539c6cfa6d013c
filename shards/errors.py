"""The one error a command shows to its user as a single line, the checks that most often raise it, and damage."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

Command = TypeVar("Command")


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the file or flag, what was found, and the fix. Commands print
    `error: …` to standard error and exit with 2.
    """


class DamagedError(OSError):
    """A row's bytes are not those that were written, or cannot be had. The message is one line that says which."""


@contextmanager
def one_line(advice: str = "", place: Path | None = None, system: int = 1) -> Iterator[None]:
    """Around a command's work: what its user can do something about ends the process with one line, no traceback.

    The exit status is 2 for an InputError, `system` for an OSError (a disk that is full), 130 for Ctrl-C, and, without
    a line, 141 when what it printed is no longer read (`| head`). advice: said after an OSError and Ctrl-C, such as how
    to continue; place: what is written, named where an OSError names no file.
    """
    after = f"; {advice}" if advice else ""
    try:
        yield
        return
    except InputError as error:
        line, status = f"error: {error}", 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
        sys.exit(141)
    except OSError as error:
        if not str(error):  # such as a TimeoutError of our own
            raise
        named = [str(one) for one in (error.filename or place, error.strerror or error) if one]
        line, status = f"error: {': '.join(named)}{after}", system
    except KeyboardInterrupt:
        line, status = f"\nstopped{after}", 130
    print(line, file=sys.stderr)
    sys.exit(status)


def command_line(kind: type[Command], **options: Any) -> Command:
    """What tyro.cli makes of the command line; raises InputError, in one line, where tyro would end the process with several."""
    import tyro  # here, since workers need no command line

    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(kind, **options)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        cause = end.__context__
        while cause and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause:
            raise cause from None
        said = [re.sub(r"[│╭╮╰╯─]", "", line).strip() for line in complaint.getvalue().splitlines()[1:]]
        raise InputError(" ".join(filter(None, said)).split(" For full helptext")[0]) from None


def require(settings: object, *rules: tuple[str, bool, str]) -> None:
    """Raise InputError, naming the flag, for the first (field, whether it is right, what to give) that is not right."""
    for name, right, advice in rules:
        if not right:
            raise InputError(f"--{name.replace('_', '-')} {getattr(settings, name)}: {advice}")


def at_least(settings: object, least: int, *names: str) -> None:
    """Raise InputError, naming the flag, for the first of these fields that is not a finite number ≥ `least`, or None."""
    for name in names:
        value = getattr(settings, name)
        right = value is None or least <= value < float("inf")
        require(settings, (name, right, f"must be at least {least}"))


def above(settings: object, least: int, *names: str) -> None:
    """Raise InputError, naming the flag, for the first of these fields that is not a finite number > `least`."""
    for name in names:
        right = least < getattr(settings, name) < float("inf")
        require(settings, (name, right, f"must be above {least}"))


def new_or_empty(folder: Path, name: str) -> None:
    """Raise InputError, which begins with `name`, unless the folder can be written from its beginning."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{name}: name a new or empty folder; one that was begun has to be emptied")
