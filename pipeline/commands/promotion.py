"""`cracks promote`, `approve`, `rollback` and `history`: change the production model, and show past changes."""

import argparse
import getpass
import logging
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params
from pipeline.errors import RefusedError

if TYPE_CHECKING:
    from pipeline.registry.promote import Decided
    from pipeline.registry.promotion_records import Record

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the parsers of the four commands."""
    promote = commands.add_parser(
        "promote",
        help="put a model into production if it passes the rules",
        description="Check a version against the rules; if it passes all, it goes to production. Exit code 3: refused.",
    )
    promote.add_argument("version", nargs="?", metavar="VERSION", help="number or alias (default: challenger)")
    promote.add_argument("--dry-run", action="store_true", help="check only; move no alias and record nothing")
    promote.set_defaults(run=_promote)

    approve = commands.add_parser("approve", help="approve a promotion that is pending")
    approve.add_argument("version", metavar="VERSION", help="number")
    approve.set_defaults(run=_approve)

    for parser in (promote, approve):
        parser.add_argument("--allow-dirty", action="store_true", help="accept a version of uncommitted code")
        parser.add_argument(
            "--demo",
            action="store_true",
            help="accept a model of drawn images, to try this out; photos are not scored with it",
        )

    rollback = commands.add_parser("rollback", help="put the previous production version back")
    rollback.add_argument("--to", metavar="VERSION", help="number (default: the previous one)")
    rollback.add_argument("--reason", required=True, help="why; it is recorded")
    rollback.set_defaults(run=_rollback)

    for parser in (promote, rollback):
        parser.add_argument("--by", metavar="NAME", help="who decides (default: the user of this machine)")
    approve.add_argument("--by", metavar="NAME", required=True, help="who approves")

    history = commands.add_parser("history", help="print every decision about production, newest first")
    history.add_argument("--json", action="store_true", help="as JSON, with all rules and figures")
    history.set_defaults(run=_history)


def _promote(args: argparse.Namespace) -> None:
    from pipeline.registry import promote
    from pipeline.registry.run_summary import outdated_stages

    if args.version is None and (outdated := outdated_stages()):
        log.warning("%s failed or did not run since: the challenger is of an earlier run", ", ".join(outdated))
    by = args.by or getpass.getuser()
    decided = promote.run(
        project_params(), args.version, dry_run=args.dry_run, by=by, allow_dirty=args.allow_dirty, allow_demo=args.demo
    )
    _finish(decided)
    if args.dry_run:
        print("Dry run: no alias was moved and nothing was recorded.")


def _approve(args: argparse.Namespace) -> None:
    from pipeline.registry import promote

    _finish(
        promote.approve(project_params(), args.version, by=args.by, allow_dirty=args.allow_dirty, allow_demo=args.demo)
    )


def _rollback(args: argparse.Namespace) -> None:
    from pipeline.registry import promote

    _finish(promote.rollback(project_params(), args.to, args.reason, args.by or getpass.getuser()))


def _history(args: argparse.Namespace) -> None:
    import json

    from pipeline.registry.history import opened
    from pipeline.registry.versions import PRODUCTION, find_version

    with opened(project_params().register_as.name) as history:
        records = history.records()
        if args.json:
            print(json.dumps([record.as_dict() | history.details(record) for record in records], indent=2))
            return
        for record in records:
            print(_line(record))
        found = find_version(history.client, history.model, PRODUCTION)  # an error if it has been deleted
        production = None if found is None else str(found.version)
    latest = next((record.version for record in records if record.has_moved), None)
    if production != latest:
        print(f"The alias production is at {production or 'no version'}; it was not moved by a recorded decision.")
    elif not records:
        print("There is no decision yet. Run `cracks promote`.")


def _finish(decided: "Decided") -> None:
    record = decided.record
    width = max(len(result.name) for result in decided.results)
    for result in decided.results:
        print(f"{'pass' if result.passed else 'FAIL'}  {result.name:<{width}}  {result.text}")
    n_failed = sum(not result.passed for result in decided.results)
    if record.outcome == "refused":
        raise RefusedError(f"Version {record.version} is refused, {n_failed} of {len(decided.results)} rules fail. "
                           "Nothing has moved.")  # fmt: skip
    print(_line(record))
    if record.outcome == "pending":
        print(f"It needs approval: cracks approve {record.version} --by NAME")


def _line(record: "Record") -> str:
    change = f"version {record.version}" + (f" (was {record.previous})" if record.previous else "")
    text = f"  {record.text}" if record.text else ""
    return f"{record.time}  {record.outcome:<11}  {change}  by {record.by}{text}"
