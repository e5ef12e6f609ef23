"""`cracks audit`, `data-docs`: check a data set before training on it, and the history of all validations."""

import argparse
from pathlib import Path

from pipeline.commands import Commands, project_params


def add(commands: Commands) -> None:
    """Add the parsers of both commands."""
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
    audit.set_defaults(run=_audit)
    docs = commands.add_parser(
        "data-docs",
        help="build the Data Docs of Great Expectations: every validation so far",
        description="Build the Data Docs of Great Expectations from the results of `validate` and `split`.",
    )
    docs.set_defaults(run=_data_docs)


def _audit(args: argparse.Namespace) -> None:
    import tempfile

    from pipeline.data.audit import audit
    from pipeline.data.dataset_reader import pack_dataset
    from pipeline.data.images import PackedImages, read_quarantine
    from pipeline.files import write_text
    from pipeline.params import Dataset

    params = project_params()
    dataset = Dataset(source=args.source, photo_pattern=args.photo_pattern)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        pack_dataset(dataset, params.ingest, folder)
        found = audit(args.source.name, dataset, params, PackedImages(folder), read_quarantine(folder))
    write_text(args.out, found.page)
    width = max(len(name) for name in found.facts)
    for name, value in found.facts.items():
        print(f"{name:<{width}}  {value:>8}")
    for rule in found.rules:
        if not rule.success:
            print(f"broken: {rule.text}. Observed: {rule.observed}")
    print(f"Pictures: {args.out}")


def _data_docs(args: argparse.Namespace) -> None:
    from pipeline.data.data_context import build_data_docs
    from pipeline.project import DATA_CONTEXT, project_root

    print(build_data_docs(project_root() / DATA_CONTEXT))
