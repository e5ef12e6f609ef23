"""Command line of a stage: argument parser, logging, and errors as exit codes."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import CracksError

# Packages that come with an extra of pyproject.toml, by the names under which they are imported.
EXTRAS = {"boto3": "server", "distributed": "cluster", "psycopg2": "server"}


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with `--params`; a stage adds its paths, each required, so that dvc.yaml lists them all."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, required=True, help="params.yaml")
    return parser


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's `main` and exit: 0 done, 1 defect, 2 bad input, 3 refused, 4 a service is away."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for ours in ("pipeline", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    # Started by path, as cron and systemd do, it still starts the programs of its own environment, such as dvc.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    try:
        main()
    except CracksError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        print(f"error: {error.name} is not installed. Run: make install EXTRAS={extra}", file=sys.stderr)  # noqa: T201
        sys.exit(CracksError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
