"""Which runs of a schedule need not happen after a pause."""

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Completed, Failed

from flows.flow_runs import error_of, exit_code, failed, superseded
from pipeline import process_identity
from pipeline.errors import CracksError, RefusedError, UnavailableError

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def run(due_min: float, state: StateType = StateType.SCHEDULED, started_min: float | None = None, **more) -> FlowRun:
    """Return a run, due and started so many minutes after noon."""
    started = None if started_min is None else NOON + timedelta(minutes=started_min)
    due = NOON + timedelta(minutes=due_min)
    fields = {"flow_id": uuid4(), "auto_scheduled": True, "state_type": state, "expected_start_time": due} | more
    return FlowRun(start_time=started, **fields)


def test_of_overdue_runs_the_newest_is_kept():
    missed = [run(-30), run(-20), run(-10)]
    assert superseded([*missed, run(10)], NOON) == missed[:2]


def test_an_overdue_run_is_not_needed_where_another_started_after_it_was_due():
    missed = run(-10)
    assert superseded([missed, run(-20, StateType.RUNNING, started_min=-5)], NOON) == [missed]


def test_one_that_came_due_after_the_last_start_is_kept():
    assert superseded([run(-10), run(-20, StateType.COMPLETED, started_min=-15)], NOON) == []


def test_a_cancelled_run_did_no_work_though_it_has_a_start_time():
    assert superseded([run(-10), run(-20, StateType.CANCELLED, started_min=-5)], NOON) == []


def test_a_run_that_a_person_asked_for_is_never_cancelled():
    assert superseded([run(-30, auto_scheduled=False), run(-10)], NOON) == []


def test_a_process_is_known_again_and_another_with_its_id_is_not():
    this = json.loads(json.dumps(process_identity.this_process()))
    assert process_identity.is_alive(this)
    assert not process_identity.is_gone(this)
    assert process_identity.is_gone(this | {"started_s": this["started_s"] - 3600})
    assert process_identity.is_gone(this | {"pid": 2**22 + 1})


@pytest.mark.parametrize("pid", [1, 2**22 + 1])
def test_of_another_machines_process_nothing_is_said(pid):
    elsewhere: process_identity.ProcessIdentity = {"pid": pid, "started_s": 0, "host": "another"}
    assert not process_identity.is_gone(elsewhere)
    assert not process_identity.is_alive(elsewhere)


@pytest.mark.parametrize(("kind", "code"), [(CracksError, 2), (RefusedError, 3), (UnavailableError, 4)])
def test_a_run_that_fails_exits_with_the_code_of_its_error_also_as_a_part_of_another(kind, code):
    state = failed(kind("The inbox is empty."))
    assert (exit_code(state), state.message) == (code, "The inbox is empty.")
    assert exit_code(failed(error_of(state))) == code


def test_a_run_that_ends_by_a_defect_exits_with_1_and_one_whose_answer_is_no_with_0():
    assert exit_code(Failed(message="ZeroDivisionError: division by zero")) == 1
    assert exit_code(failed(error_of(Failed(message="ZeroDivisionError: division by zero")))) == 1
    assert exit_code(Completed(name="Refused", message="the gate refuses it")) == 0
