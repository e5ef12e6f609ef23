"""What follows of the decisions about production: which version is there, which one was the best, who may go on."""

import json
import socket
import subprocess
import sys
from dataclasses import replace

import psutil
from hypothesis import given
from hypothesis import strategies as st

from pipeline.process_identity import this_process
from pipeline.registry.promotion_records import LEASE_S, Record, best_of, may_be_running, rolled_back, stack_of

PROMOTION = Record("promotion", "promoted", "2", "1", "Ada", "", best="2")


def promoted(version, previous=None, best=None):
    return Record("promotion", "promoted", version, previous, "Ada", "", best=best)


def went_back(version, previous):
    return Record("rollback", "rolled back", version, previous, "Ada", "too many false alarms")


def dead_process():
    """Return the name of a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as process:
        began = psutil.Process(process.pid).create_time()
        process.communicate("\n")
    return json.dumps({"pid": process.pid, "started_s": began, "host": socket.gethostname()})


def test_a_process_may_go_on_while_it_runs_and_its_time_lasts():
    record = replace(PROMOTION, time_ms=1000, process=json.dumps(this_process()))
    assert may_be_running(record, now_ms=1000 + 1000 * LEASE_S - 1)
    assert not may_be_running(record, now_ms=1000 + 1000 * LEASE_S)
    assert not may_be_running(replace(record, process=dead_process()), now_ms=1001)
    given_again = json.dumps(this_process() | {"started_s": 1.0})  # another process had its number before
    assert not may_be_running(replace(record, process=given_again), now_ms=1001)


def test_a_rollback_goes_under_what_it_takes_back():
    moves = [promoted("1"), promoted("2", "1"), promoted("3", "2"), went_back("2", "3")]
    assert stack_of(moves) == ["1", "2"]
    assert stack_of([*moves, went_back("1", "2")]) == ["1"]
    assert stack_of([*moves, promoted("4", "2")]) == ["1", "2", "4"]
    assert stack_of([*moves, went_back("3", "2")]) == ["1", "2", "3"]


def test_what_was_taken_back_counts_until_it_is_brought_back():
    moves = [promoted("1"), promoted("2", "1"), went_back("1", "2")]
    assert rolled_back(moves) == {"2"}
    assert rolled_back([*moves, went_back("2", "1")]) == {"1"}


def test_the_best_is_what_the_last_promotion_found_best_unless_it_was_taken_back():
    moves = [promoted("1", best="1"), promoted("2", "1", best="1"), promoted("3", "2", best="3")]
    existing = {"1", "2", "3"}
    assert best_of([], existing) is None
    assert best_of(moves[:2], existing) == "1"
    assert best_of(moves, existing) == "3"
    assert best_of(moves, existing - {"3"}) == "1"
    assert best_of([*moves, went_back("2", "3")], existing) == "1"


steps = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=12)


@given(steps)
def test_on_top_of_the_stack_is_always_what_is_in_production(choices):
    moves, production = [], None
    for is_promotion, number in choices:
        version = str(number)
        if version == production or (not is_promotion and version not in {move.version for move in moves}):
            continue
        moves.append(promoted(version, production) if is_promotion else went_back(version, production))
        production = version
    stack = stack_of(moves)
    assert (stack[-1] if stack else None) == production
    assert production not in rolled_back(moves)
