"""Kills the retraining flow at random moments and checks that the next run ends like an undisturbed one.

    python -m benchmarks.faults --kills 20

Runs the fault test of tests/test_retraining.py on a copy of the project with small drawn images: kill -9 of the flow's
process group at moments drawn with a fixed seed, then a second run. Its registered model, scores, record of batches and
archives must be those of an undisturbed run. Prints each moment and the result of pytest.
"""

import argparse
import os
import subprocess
import sys


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    args = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "tests/test_retraining.py", "-k", "killed", "--log-cli-level=INFO"]
    environment = os.environ | {"CRACKS_KILLS": str(args.kills)}
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
