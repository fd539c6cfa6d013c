"""How commands end: one line on standard error, and the exit status that scripts go by."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from shards import DamagedError, InputError, one_line


@pytest.mark.parametrize(
    ("raised", "line", "status"),
    [
        (InputError("--size 7: must be even"), "error: --size 7: must be even\n", 2),
        (
            DamagedError("a.tar: row 3 is not what was written"),
            "error: out: a.tar: row 3 is not what was written; go on\n",
            1,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "error: out: No space left on device; go on\n", 1),
        (KeyboardInterrupt(), "\nstopped; go on\n", 130),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    raised: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line("go on", Path("out")):
        raise raised
    assert ended.value.code == status and capsys.readouterr() == ("", line)


def test_an_os_error_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line():
        (tmp_path / "nowhere").read_bytes()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'}: No such file or directory\n"


def test_what_is_no_longer_read_ends_silently() -> None:
    code = "from shards import one_line\nwith one_line('go on'):\n    for _ in range(99999): print('line')"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; {sys.executable} -c "$0" | head -n 1', code],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, "line\n", "")


def test_a_defect_of_ours_keeps_its_traceback_and_success_its_status() -> None:
    with pytest.raises(ZeroDivisionError), one_line():
        1 / 0  # noqa: B018
    with pytest.raises(TimeoutError), one_line():
        raise TimeoutError
    with one_line():
        pass
