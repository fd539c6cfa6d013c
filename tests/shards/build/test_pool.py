"""Results in order, and a process that dies costs its own task only. `eval` serves as the work."""

import subprocess
import sys
from contextlib import closing

import pytest
from independent import ENVIRONMENT

from shards.build.pool import AHEAD, Reject, in_order


def test_results_come_in_the_order_of_the_tasks_falsy_ones_too() -> None:
    tasks = [f"__import__('time').sleep({0.02 * (n % 3)}) or {n}" for n in range(12)]
    assert list(in_order(eval, tasks, workers=2)) == list(range(12))


def test_a_dying_process_costs_only_the_task_it_died_of() -> None:
    die = "__import__('os').kill(__import__('os').getpid(), 9)"
    results = list(in_order(eval, ["0", die, "2", "3", "4", "5", "6", "7", die, "9"], workers=2))
    assert [type(one) is Reject for one in results] == [n in (1, 8) for n in range(10)]
    assert [one for one in results if not isinstance(one, Reject)] == [0, 2, 3, 4, 5, 6, 7, 9]


def test_an_exception_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(eval, ["1", "1 / 0", "2"], workers=1))


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []

    def tasks():
        for n in range(1000):
            taken.append(n)
            yield str(n)

    with closing(in_order(eval, tasks(), workers=1)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + AHEAD


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import os; from shards.build.pool import in_order\n"
        "for pid in in_order(eval, ['__import__(\"os\").getpid()', '__import__(\"time\").sleep(60)'], 1):\n"
        "    print(pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    # the worker holds the other end of this pipe: reading to its end waits until it is gone, not 60 s
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=30)
    assert result.returncode == -9 and int(result.stdout) > 0


def test_a_task_that_takes_too_long_is_given_up_and_its_process_replaced() -> None:
    tasks = ["0", "__import__('time').sleep(600)", "2", "3"]
    results = list(in_order(eval, tasks, workers=1, timeout=1))
    assert [results[0], *results[2:]] == [0, 2, 3]
    assert isinstance(results[1], Reject) and results[1].reason == "timeout"


def test_a_segfault_and_a_kill_say_what_they_were() -> None:
    die = "__import__('os').kill(__import__('os').getpid(), {})"
    segfault, kill, fine = in_order(eval, [die.format(11), die.format(9), "7"], workers=2)
    assert "SIGSEGV" in segfault.detail and "memory" in kill.detail and fine == 7


def test_memory_beyond_the_limit_is_refused_to_the_worker_alone() -> None:
    with pytest.raises(MemoryError):
        list(in_order(eval, ["len(bytearray(2**30))"], workers=1, memory=0.5))
    assert list(in_order(eval, ["len(bytearray(2**30))"], workers=1, memory=4)) == [2**30]
