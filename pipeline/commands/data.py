"""`cracks audit`, `data-docs`, `batches` and `worth-labelling`: images to train on, before and after they are taken."""

import argparse
import getpass
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params
from pipeline.errors import CracksError, RefusedError
from pipeline.project import DATA_CONTEXT, INBOX, MANIFEST, project_root

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.data.contract_page import SuspectLabels
    from pipeline.data.images import PackedImages
    from pipeline.inbox.batches import Taken
    from pipeline.params import Dataset, Params

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the parsers of the commands."""
    audit = commands.add_parser(
        "audit",
        help="check a data set before training on it",
        description="Count near-duplicates, conflicting labels and the test images that a random split would leak; "
        "with --labels, rank the images by how likely their label is wrong.",
    )
    audit.add_argument(
        "source", type=Path, help="folder or archive of labelled images; if params.yaml has it, with its settings"
    )
    audit.add_argument("--out", type=Path, default=Path("audit.html"), help="page to write (default: audit.html)")
    audit.add_argument(
        "--photo-pattern", help="regular expression on the path of a tile; its first group names the photo"
    )
    audit.add_argument(
        "--label",
        dest="folders",
        action="append",
        type=_folder_and_label,
        metavar="FOLDER=LABEL",
        help="a folder and its label, crack or intact, in place of names such as Positive; may be repeated",
    )
    audit.add_argument(
        "--labels",
        action="store_true",
        help="rank the images by how likely their label is wrong, on the page and in a table beside it (minutes)",
    )
    audit.add_argument(
        "--export", type=Path, metavar="FOLDER", help="folder to write the first of that ranking to, for review"
    )
    audit.add_argument("--first", type=int, default=100, help="how many images to export (default: 100)")
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

    if args.first < 1:
        raise CracksError(f"--first is {args.first}, but it is a number of images to export, 1 or more.")
    if args.export and args.export.exists():
        raise CracksError(f"{args.export} exists already. Give a new folder, so that nothing is overwritten.")
    params = project_params()
    dataset = _dataset_of(args, params)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        pack_dataset(dataset, params.ingest, folder)
        images = PackedImages(folder)
        judge_labels = partial(_audit_labels, args, images) if args.labels or args.export else None
        found = audit(args.source.name, dataset, params, images, read_quarantine(folder), judge_labels=judge_labels)
    write_text(args.out, found.page)
    width = max(map(len, found.facts))
    for name, value in found.facts.items():
        print(f"{name:<{width}}  {value:>8}")
    for rule in found.rules:
        if not rule.success:
            print(f"broken: {rule.text}. Observed: {rule.observed}")
    print(f"Pictures: {args.out}")


def _dataset_of(args: argparse.Namespace, params: "Params") -> "Dataset":
    """Return the settings of the source to audit: of params.yaml, if it has the source, and of the command line."""
    from pipeline.params import Dataset

    source = args.source.resolve()
    known = (each for each in params.datasets.values() if (project_root() / each.source).resolve() == source)
    settings = next((each.model_dump() for each in known), {})
    settings |= {"photo_pattern": args.photo_pattern} if args.photo_pattern else {}
    settings |= {"labels": dict(args.folders)} if args.folders else {}
    return Dataset.model_validate(settings | {"source": args.source})


def _audit_labels(args: argparse.Namespace, images: "PackedImages", pairs: "pd.DataFrame") -> "SuspectLabels":
    """Rank the labels of images with these pairs of copies, write table and export, and return what the page shows."""
    import numpy as np
    import pandas as pd

    from pipeline.data.near_duplicates import connected_groups
    from pipeline.data.suspect_labels import first_to_review, rank, suspects
    from pipeline.files import write_text
    from pipeline.monitoring.labelling import export
    from pipeline.safe_text import cells
    from pipeline.training.label_audit import audit_labels, groups_held_out_together

    root, inventory = project_root(), images.inventory
    groups = groups_held_out_together(inventory, pairs)
    probabilities, findings = audit_labels(images, groups, root / "data/checkpoints/label-audit", args.source.name)
    exists = (root / MANIFEST).exists()
    manifest = pd.read_parquet(root / MANIFEST) if exists else pd.DataFrame(columns=["sha256", "split"])
    ranking = rank(inventory, probabilities, manifest)
    page = suspects(ranking, images, findings)
    print("\n".join(page.sentences))
    table = args.out.with_name(f"{args.out.stem}-labels.csv")
    write_text(table, cells(ranking).to_csv(index=False))
    print(f"Ranking of all labels: {table}")
    if args.export:
        chosen = first_to_review(ranking, args.first)
        # a batch that gives an image another label than its copy has breaks the contract
        copy_groups = connected_groups(len(inventory), pairs[["first", "second"]].to_numpy())
        is_chosen = np.isin(copy_groups[ranking.index], copy_groups[chosen.index])
        together = ranking[is_chosen].drop_duplicates("sha256")
        n_images = export(together, args.export, map(images.content, together.index.tolist()))
        print(f"For review, the first {len(chosen):,} and {n_images - len(chosen):,} copies of them: {args.export}")
    return page


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
