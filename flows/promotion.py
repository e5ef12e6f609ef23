"""The promotion and rollback flows: `cracks promote` and `cracks rollback`, started by Prefect.

A refusal ends as Completed with the name Refused, because the gate did its work and a retry would not help. Failed is
reserved for errors, such as a missing version or an unavailable registry.
"""

import argparse
import getpass

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import flow_runs
from flows.flow_runs import failed
from pipeline.errors import CracksError, RefusedError
from pipeline.params import load_params
from pipeline.project import project_root
from pipeline.registry import promote
from pipeline.registry.promote import Decided

NAMES = {"promoted": "Promoted", "refused": "Refused", "pending": "Pending approval", "rolled back": "Rolled back"}


@flow(name="promotion", on_running=[flow_runs.record_process])
def promotion(version: str | None = None, by: str | None = None, *, allow_dirty: bool = False) -> State:
    """Apply the gate to a version, by default the challenger; promote it if all rules pass."""
    try:
        params = load_params(project_root() / "params.yaml")
        decided = promote.run(params, version, dry_run=False, allow_dirty=allow_dirty, by=by or getpass.getuser())
    except RefusedError as error:
        return Completed(message=str(error), name="Refused")
    except (CracksError, OSError) as error:
        return failed(error)
    return _ended(decided)


@flow(name="rollback", on_running=[flow_runs.record_process])
def rollback(reason: str, to: str | None = None, by: str | None = None) -> State:
    """Roll back to the version that was in production before."""
    try:
        params = load_params(project_root() / "params.yaml")
        return _ended(promote.rollback(params, to, reason, by or getpass.getuser()))
    except (CracksError, OSError) as error:
        return failed(error)


def _ended(decided: Decided) -> State:
    for result in decided.results:
        get_run_logger().info("%s  %s: %s", "pass" if result.passed else "FAIL", result.name, result.text)
    record = decided.record
    failed = ", ".join(result.name for result in decided.results if not result.passed)
    message = f"version {record.version}: {record.outcome}" + (f", failing: {failed}" if failed else "")
    return Completed(message=message, name=NAMES[record.outcome])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Promote the challenger if it passes the gate.")
    parser.add_argument("--allow-dirty", action="store_true", help="accept code that differs from its commit")
    flow_runs.run_once(promotion, allow_dirty=parser.parse_args().allow_dirty)
