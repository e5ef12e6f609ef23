"""Predict cracks, map photos, audit data and manage models. `cracks COMMAND --help` explains each command."""

import argparse

from pipeline.commands import data, images, promotion, repro
from pipeline.stage import run_main


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 defect, 2 bad input, 3 refused, 4 a service is away."""
    parser = argparse.ArgumentParser(prog="cracks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (images, data, promotion, repro):
        module.add(commands)
    args = parser.parse_args()
    run_main(lambda: args.run(args))


if __name__ == "__main__":
    main()
