"""`cracks batches`: which labelled batches wait, were taken, refused or removed; take and remove them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands

if TYPE_CHECKING:
    from pipeline.inbox.batches import Taken


def add(commands: Commands) -> None:
    """Add the parsers of the three."""
    batches = commands.add_parser(
        "batches",
        help="list, take and remove labelled batches",
        description="List the labelled batches that were taken from data/inbox/, and those that wait there.",
    )
    batches.set_defaults(run=_list)
    actions = batches.add_subparsers(metavar="ACTION")
    take = actions.add_parser("take", help="take what waits in the inbox into its data set, for the next training")
    take.set_defaults(run=_take)
    remove = actions.add_parser("remove", help="take a bad batch out of its data set, for the next training")
    remove.add_argument("name", help="of the archive, or of its file in the data set")
    remove.add_argument("--reason", required=True, help="in words, for the record")
    remove.set_defaults(run=_remove)


def _list(args: argparse.Namespace) -> None:
    from pipeline.inbox.batches import read_record
    from pipeline.project import INBOX, project_root

    root = project_root()
    record = read_record(root)
    for batch in record:
        print(f"{batch.taken_at}  {batch.file}  {batch.n_images:,} images, by {batch.taken_by}; {_fate(batch)}")
    if not record:
        print("No batch was taken yet.")
    for folder, word in ((root / INBOX, "waits"), (root / INBOX / "refused", "refused")):
        for path in _archives(folder):
            print(f"{word}: {path.relative_to(root)}")


def _fate(batch: "Taken") -> str:
    if batch.removed_at:
        return f"removed {batch.removed_at} by {batch.removed_by}: {batch.removed_because}"
    return f"trained on for version {batch.trained_as}" if batch.trained_as else "not trained on yet"


def _archives(folder: Path) -> list[Path]:
    from pipeline.data.archives import is_archive

    return sorted(path for path in folder.iterdir() if is_archive(path.name)) if folder.is_dir() else []


def _take(args: argparse.Namespace) -> None:
    import getpass
    from datetime import UTC, datetime

    from pipeline.errors import RefusedError
    from pipeline.inbox.batches import Refused, describe, take_all
    from pipeline.inbox.retraining import alone
    from pipeline.params import load_params
    from pipeline.project import project_root

    root = project_root()
    params = load_params(root / "params.yaml")
    with alone(root):
        outcomes = take_all(root, params, now=datetime.now(UTC), by=getpass.getuser())
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    if not outcomes:
        print("Nothing waits in data/inbox/.")
    if refused:
        raise RefusedError("\n".join(describe(outcome) for outcome in refused))


def _remove(args: argparse.Namespace) -> None:
    import getpass
    from datetime import UTC, datetime

    from pipeline.inbox.batches import remove
    from pipeline.inbox.retraining import alone
    from pipeline.params import load_params
    from pipeline.project import project_root

    root = project_root()
    params = load_params(root / "params.yaml")
    with alone(root):
        batch = remove(root, params, args.name, reason=args.reason, now=datetime.now(UTC), by=getpass.getuser())
    print(f"{batch.file} is out of {batch.dataset}; `make run` or the next retraining trains without it.")
