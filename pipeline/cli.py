"""The command `cracks`: what a person asks of the models. `cracks COMMAND --help` explains each."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from pipeline.stage import run_main

log = logging.getLogger(__name__)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.errors import CracksError
    from pipeline.files import replacing
    from pipeline.params import load_params
    from pipeline.sources import find_images
    from pipeline.tracking import project_root

    paths = find_images(args.paths)
    name = load_params(project_root() / "params.yaml").register_as.name
    from pipeline.predict import load_model, predict  # last: it takes seconds, a mistake above none

    classifier, description = load_model(name, args.model)
    log.info("Scoring %d images with %s", len(paths), description)
    scored = predict(classifier, paths)
    with replacing(args.out) as partial:
        scored.table.to_csv(partial, index=False)
    counts = ", ".join(f"{count} {label}" for label, count in scored.table["label"].value_counts().items())
    log.info("%s: %s", args.out, counts or "no image")
    if scored.unreadable:
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in scored.unreadable.items())
        raise CracksError(f"{len(scored.unreadable)} files could not be read and are not in {args.out}:\n{reasons}")


def _audit(args: argparse.Namespace) -> None:
    import tempfile

    from pipeline import ingest
    from pipeline.audit import audit
    from pipeline.files import write_text
    from pipeline.images import PackedImages, read_quarantine
    from pipeline.params import Dataset, load_params
    from pipeline.tracking import project_root

    params = load_params(project_root() / "params.yaml")
    dataset = Dataset(source=args.source, photo_pattern=args.photo_pattern)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        ingest.run(dataset, params.ingest, folder)
        found = audit(args.source.name, dataset, params, PackedImages(folder), read_quarantine(folder))
    write_text(args.out, found.page)
    width = max(len(name) for name in found.facts)
    for name, value in found.facts.items():
        print(f"{name:<{width}}  {value:>8}")
    for rule in found.rules:
        if not rule.success:
            print(f"not so: {rule.text}. Observed: {rule.observed}")
    print(f"Pictures: {args.out}")


def _check(args: argparse.Namespace) -> None:
    from pipeline.errors import CracksError
    from pipeline.params import load_params

    missing = [str(data.source) for data in load_params(args.params).datasets.values() if not data.source.exists()]
    if missing:
        raise CracksError(
            f"The source {', '.join(missing)} named in {args.params} does not exist. Put the archive or folder there, "
            "or correct `source`."
        )


def _registered(args: argparse.Namespace) -> None:
    from pipeline.register import is_registered

    if not is_registered(args.reports / "registered.json"):
        log.info("The best model is not in the tracking store that is set now.")
        sys.exit(1)


def _read_report(folder: Path, name: str) -> dict[str, Any]:
    from pipeline.errors import CracksError

    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CracksError(f"There is no {folder / name}. Run `make run` first.") from None


def _summary(args: argparse.Namespace) -> None:
    metrics, registered = _read_report(args.reports, "metrics.json"), _read_report(args.reports, "registered.json")
    if metrics["demo"]:
        print("Demo: drawn images. These numbers say nothing about real concrete.")
    print(f"Best candidate, chosen on validation: {metrics['candidate']}")
    for name, scores in {"test": metrics["test"], **metrics["outside"]}.items():
        auroc = "none" if scores["auroc"] is None else f"{scores['auroc']:.4f}"
        print(f"  {name}: F1 {scores['f1']:.4f}, AUROC {auroc}, ECE {scores['ece']:.4f}, {scores['n']} images")
    if registered["version"] is None:
        print("Registered: nothing, this was an experiment")
    else:
        print(f"Registered: {registered['name']} version {registered['version']}, alias challenger")
    print(f"Report: {args.reports / 'report.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cracks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser(
        "predict", help="score images", description="Score images: crack, intact, or for a person to review."
    )
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    predict.add_argument("--out", type=Path, required=True, help="CSV file to write: path, probability, label")
    predict.add_argument(
        "--model",
        help="alias, version, folder or `starter`; default: production, else challenger if it is no demo, else starter",
    )
    predict.set_defaults(run=_predict)

    audit = commands.add_parser(
        "audit",
        help="look a data set through",
        description="Count copies, conflicts and what a random split would leak.",
    )
    audit.add_argument("source", type=Path, help="folder or archive of labelled images")
    audit.add_argument("--out", type=Path, default=Path("audit.html"), help="page to write (default: audit.html)")
    audit.add_argument("--photo-pattern", help="regular expression whose first group names the photo of a tile")
    audit.set_defaults(run=_audit)

    check = commands.add_parser("check", help="check params.yaml and that every source is there")
    check.add_argument("--params", type=Path, default=Path("params.yaml"), help="file to check")
    check.set_defaults(run=_check)

    registered = commands.add_parser(
        "registered", help="exit 0 if the tracking store has the model that the last `dvc repro` registered, else 1"
    )
    registered.add_argument("--reports", type=Path, default=Path("reports"), help="folder of the reports")
    registered.set_defaults(run=_registered)

    summary = commands.add_parser("summary", help="print what the last `dvc repro` came to")
    summary.add_argument("--reports", type=Path, default=Path("reports"), help="folder of the reports")
    summary.set_defaults(run=_summary)
    return parser


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 defect, 2 bad input, 3 refused, 4 a service is away."""
    args = _parser().parse_args(sys.argv[1:])
    run_main(lambda: args.run(args))


if __name__ == "__main__":
    main()
