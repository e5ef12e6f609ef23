"""Command line of a stage: argument parser, logging, and errors as exit codes."""

import argparse
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

from pipeline.errors import CracksError, with_remedy
from pipeline.safe_text import printable_lines

# Packages that come with an extra of pyproject.toml, by the names under which they are imported.
EXTRAS = {"boto3": "server", "distributed": "cluster", "psycopg2": "server"}


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with `--params`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, required=True, help="params.yaml")
    return parser


def stage_main(run: Callable[..., None]) -> Callable[[], None]:
    """Return the `main` of a stage, which reads the arguments of `run` from the command line.

    `--params` is the file of the argument `params`. Each other argument is a required flag, so that dvc.yaml lists all
    paths; it is annotated with its type and its help: `scores: Annotated[Path, "JSON file to write"]`.
    """

    def main() -> None:
        """Run the stage from its command line."""
        from pipeline.params import load_params

        parser = stage_parser(inspect.getdoc(inspect.getmodule(run)))
        for name, hint in get_type_hints(run, include_extras=True).items():
            if get_origin(hint) is Annotated:
                kind, meaning = get_args(hint)
                parser.add_argument(f"--{name.replace('_', '-')}", type=kind, required=True, help=meaning)
        arguments = vars(parser.parse_args())
        run(load_params(arguments.pop("params")), **arguments)

    return main


class PrintableFormatter(logging.Formatter):
    """Writes messages so that no name in them, such as that of a file, can hide or change anything in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return printable_lines(super().format(record))


def use_own_programs() -> None:
    """Let this process start the programs of its own environment, such as dvc, also if cron or systemd started it."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's `main` and exit: 0 done, 1 defect, 2 bad input, 3 refused, 4 a service is away."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(PrintableFormatter())
    logging.basicConfig(handlers=[to_stderr])
    for ours in ("pipeline", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    use_own_programs()
    asked_to_end: list[int] = []

    def end(number: int, _: object) -> None:  # so that what is half written is deleted
        asked_to_end.append(number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)  # the servers, which call this too, then set their own
    try:
        _run(main)
    except Exception:  # a library may make one of the exit, as OpenVINO does while it converts
        if asked_to_end:
            sys.exit(128 + signal.SIGTERM)
        raise


def _run(main: Callable[[], None]) -> None:
    """Run `main`; end with the exit code of an error that a person can act on, and its message."""
    try:
        main()
    except (CracksError, OSError) as raised:
        error = with_remedy(raised)
        print(printable_lines(f"error: {error}"), file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        extra = EXTRAS[missing.name]
        print(f"error: {missing.name} is not installed. Run: make install EXTRAS={extra}", file=sys.stderr)  # noqa: T201
        sys.exit(CracksError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
