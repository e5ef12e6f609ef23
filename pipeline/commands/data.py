"""`cracks audit`, `data-docs`, `batches` and `worth-labelling`: images to train on, before and after they are taken."""

import argparse
import getpass
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params
from pipeline.errors import CracksError, RefusedError
from pipeline.project import DATA_CONTEXT, INBOX, project_root

if TYPE_CHECKING:
    from pipeline.inbox.batches import Taken

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the parsers of the commands."""
    audit = commands.add_parser(
        "audit",
        help="check a data set before training on it",
        description="Count near-duplicates, conflicting labels and the test images that a random split would leak.",
    )
    audit.add_argument("source", type=Path, help="folder or archive of labelled images")
    audit.add_argument("--out", type=Path, default=Path("audit.html"), help="page to write (default: audit.html)")
    audit.add_argument(
        "--photo-pattern", help="regular expression on the path of a tile; its first group names the photo"
    )
    audit.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=_folder_and_label,
        metavar="FOLDER=LABEL",
        help="a folder and its label, crack or intact, in place of names such as Positive; may be repeated",
    )
    audit.set_defaults(run=_audit)
    docs = commands.add_parser(
        "data-docs",
        help="build the Data Docs of Great Expectations: every validation so far",
        description="Build the Data Docs of Great Expectations from the results of `validate` and `split`.",
    )
    docs.set_defaults(run=_data_docs)
    _add_batches(commands)
    worth = commands.add_parser(
        "worth-labelling",
        help="export the images most worth labelling",
        description="Export logged images that the model was unsure of, or that are far from its training images.",
    )
    worth.add_argument("--out", type=Path, required=True, help="folder to write: list.csv and copies of the images")
    worth.set_defaults(run=_worth_labelling)


def _add_batches(commands: Commands) -> None:
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


def _folder_and_label(text: str) -> tuple[str, str]:
    folder, _, label = text.rpartition("=")
    if not folder or label not in ("crack", "intact"):
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=crack or FOLDER=intact, such as CD=crack")
    return folder, label


def _audit(args: argparse.Namespace) -> None:
    import tempfile

    from pipeline.data.audit import audit
    from pipeline.data.dataset_reader import pack_dataset
    from pipeline.data.images import PackedImages, read_quarantine
    from pipeline.files import write_text
    from pipeline.params import Dataset

    params = project_params()
    labels = dict(args.labels) if args.labels else None
    dataset = Dataset.model_validate({"source": args.source, "photo_pattern": args.photo_pattern, "labels": labels})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        pack_dataset(dataset, params.ingest, folder)
        found = audit(args.source.name, dataset, params, PackedImages(folder), read_quarantine(folder))
    write_text(args.out, found.page)
    width = max(map(len, found.facts))
    for name, value in found.facts.items():
        print(f"{name:<{width}}  {value:>8}")
    for rule in found.rules:
        if not rule.success:
            print(f"broken: {rule.text}. Observed: {rule.observed}")
    print(f"Pictures: {args.out}")


def _data_docs(args: argparse.Namespace) -> None:
    from pipeline.data.data_context import build_data_docs

    print(build_data_docs(project_root() / DATA_CONTEXT))


def _list(args: argparse.Namespace) -> None:
    from pipeline.data.archives import is_archive
    from pipeline.inbox.batches import not_taken, read_record

    root = project_root()
    record, others = read_record(root), not_taken(root)
    for batch in record:
        print(f"{batch.taken_at}  {batch.file}  {batch.n_images:,} images, by {batch.taken_by}; {_status(batch)}")
    if not record:
        print("No batch has been taken yet.")
    for folder, state in ((root / INBOX, "waiting"), (root / INBOX / "refused", "refused")):
        for path in sorted(folder.glob("*")):
            if is_archive(path.name) and path not in others:
                print(f"{state}: {path.relative_to(root)}")
    for path in others:
        print(f"not taken, as it is no archive: {path.relative_to(root)}")


def _status(batch: "Taken") -> str:
    if batch.removed_at:
        return f"removed {batch.removed_at} by {batch.removed_by}: {batch.removed_because}"
    return f"trained on for version {batch.trained_as}" if batch.trained_as else "not trained on yet"


def _take(args: argparse.Namespace) -> None:
    from pipeline.inbox.batches import Refused, describe, take_all
    from pipeline.inbox.retraining import exclusive_lock

    root, params = project_root(), project_params()
    with exclusive_lock(root):
        outcomes = take_all(root, params, now=datetime.now(UTC), by=getpass.getuser())
    if not outcomes:
        print("No batch is waiting in data/inbox/.")
    if refused := [outcome for outcome in outcomes if isinstance(outcome, Refused)]:
        raise RefusedError("\n".join(map(describe, refused)))


def _remove(args: argparse.Namespace) -> None:
    from pipeline.inbox.batches import remove
    from pipeline.inbox.retraining import exclusive_lock

    root, params = project_root(), project_params()
    with exclusive_lock(root):
        batch = remove(root, params, args.name, reason=args.reason, now=datetime.now(UTC), by=getpass.getuser())
    print(f"{batch.file} is removed from {batch.dataset}; `make run` or the next retraining trains without it.")


def _worth_labelling(args: argparse.Namespace) -> None:
    from pipeline.monitoring.labelling import export_from_log

    if args.out.exists():
        raise CracksError(f"{args.out} exists already. Give a new folder, so that nothing is overwritten.")
    log.info("%s", export_from_log(project_params(), project_root(), args.out))
