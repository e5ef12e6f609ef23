"""`cracks audit`: check a data set for near-duplicates, conflicting labels and leakage."""

import argparse
from pathlib import Path

from pipeline.commands import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
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


def _audit(args: argparse.Namespace) -> None:
    import tempfile

    from pipeline.data.audit import audit
    from pipeline.data.dataset_reader import pack_dataset
    from pipeline.data.images import PackedImages, read_quarantine
    from pipeline.files import write_text
    from pipeline.params import Dataset, load_params
    from pipeline.project import project_root

    params = load_params(project_root() / "params.yaml")
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
