"""Compare a served model with its golden images and measure its latency, memory and size, in a separate process.

Usage: python -m pipeline.registry.check_served FOLDER HEIGHT_PX WIDTH_PX
Prints the result of `check` as a JSON object.
"""

import argparse
import json
import subprocess
import sys
import timeit
from pathlib import Path

import numpy as np
import psutil

from pipeline.crack_lines.tracer import load_tracer
from pipeline.errors import CracksError
from pipeline.inference.served import SERVED_FILES, ServedModel
from pipeline.models.model_files import TRACER_FILES
from pipeline.registry.evidence import Operations
from pipeline.stage import run_main

FILES = (*SERVED_FILES, *TRACER_FILES)
N_TIMES = 100  # single images, for the 95th percentile
N_WARM_UP = 5
TIMEOUT_S = 300


def check(folder: Path, height_px: int, width_px: int) -> dict[str, float]:
    """Load the model in `folder` as serving does and return the figures of `Operations`."""
    model, _tracer = ServedModel.load(folder), load_tracer(folder)  # which takes memory, too
    image = np.random.default_rng(0).integers(0, 256, (1, height_px, width_px, 3), np.uint8)
    timeit.repeat(lambda: model.outputs(image), number=1, repeat=N_WARM_UP)
    resident_mb = psutil.Process().memory_info().rss / 1e6
    p95_s = np.percentile(timeit.repeat(lambda: model.outputs(image), number=1, repeat=N_TIMES), 95)
    return {
        "golden_difference": model.golden_difference(),
        "p95_ms": 1000 * float(p95_s),
        "resident_mb": resident_mb,
        "size_mb": sum(path.stat().st_size for path in map(folder.joinpath, FILES) if path.exists()) / 1e6,
    }


def check_in_subprocess(folder: Path, height_px: int, width_px: int) -> Operations:
    """Run `check` in a new process, so that the memory measured is that of the model, and return its figures.

    `folder` has the files of the served model; the image used for timing has `height_px` and `width_px`. Raises
    CracksError if the model cannot be loaded, or the check takes longer than five minutes.
    """
    command = [sys.executable, "-m", "pipeline.registry.check_served", str(folder), str(height_px), str(width_px)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        raise CracksError(f"the model did not answer within {TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"its process ended with {error.returncode}"]
        raise CracksError(lines[-1].removeprefix("error: ")) from None
    return Operations(**json.loads(finished.stdout))


def main() -> None:
    """Run the check and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the files of the served model")
    parser.add_argument("height_px", type=int)
    parser.add_argument("width_px", type=int)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(check(args.folder, args.height_px, args.width_px)) + "\n")


if __name__ == "__main__":
    run_main(main)
