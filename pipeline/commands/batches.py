"""`cracks batches`: list, take and remove labelled batches."""

import argparse
import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params

if TYPE_CHECKING:
    from pipeline.inbox.batches import Taken


def add(commands: Commands) -> None:
    """Add the parsers of the command and its actions."""
    batches = commands.add_parser(
        "batches",
        help="list, take and remove labelled batches",
        description="List the labelled batches that were taken from data/inbox/, wait there, or were refused.",
    )
    batches.set_defaults(run=_list)
    actions = batches.add_subparsers(metavar="ACTION")
    take = actions.add_parser("take", help="move the waiting batches into their data set, for the next training")
    take.set_defaults(run=_take)
    remove = actions.add_parser("remove", help="remove a bad batch from its data set, for the next training")
    remove.add_argument("name", help="name of the archive, or of its file in the data set")
    remove.add_argument("--reason", required=True, help="why; it is recorded")
    remove.set_defaults(run=_remove)


def _list(args: argparse.Namespace) -> None:
    from pipeline.inbox.batches import read_record
    from pipeline.project import INBOX, project_root

    root = project_root()
    record = read_record(root)
    for batch in record:
        print(f"{batch.taken_at}  {batch.file}  {batch.n_images:,} images, by {batch.taken_by}; {_status(batch)}")
    if not record:
        print("No batch has been taken yet.")
    for folder, state in ((root / INBOX, "waiting"), (root / INBOX / "refused", "refused")):
        for path in _archives(folder):
            print(f"{state}: {path.relative_to(root)}")


def _status(batch: "Taken") -> str:
    if batch.removed_at:
        return f"removed {batch.removed_at} by {batch.removed_by}: {batch.removed_because}"
    return f"trained on for version {batch.trained_as}" if batch.trained_as else "not trained on yet"


def _archives(folder: Path) -> list[Path]:
    from pipeline.data.archives import is_archive

    return sorted(path for path in folder.iterdir() if is_archive(path.name)) if folder.is_dir() else []


def _take(args: argparse.Namespace) -> None:
    from pipeline.errors import RefusedError
    from pipeline.inbox.batches import Refused, describe, take_all
    from pipeline.inbox.retraining import exclusive_lock
    from pipeline.project import project_root

    root, params = project_root(), project_params()
    with exclusive_lock(root):
        outcomes = take_all(root, params, now=datetime.now(UTC), by=getpass.getuser())
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    if not outcomes:
        print("No batch is waiting in data/inbox/.")
    if refused:
        raise RefusedError("\n".join(describe(outcome) for outcome in refused))


def _remove(args: argparse.Namespace) -> None:
    from pipeline.inbox.batches import remove
    from pipeline.inbox.retraining import exclusive_lock
    from pipeline.project import project_root

    root, params = project_root(), project_params()
    with exclusive_lock(root):
        batch = remove(root, params, args.name, reason=args.reason, now=datetime.now(UTC), by=getpass.getuser())
    print(f"{batch.file} is removed from {batch.dataset}; `make run` or the next retraining trains without it.")
