"""How quick and how large a trained model is, measured in a process of its own.

Usage: python -m pipeline.performance MODEL_FOLDER HEIGHT_PX WIDTH_PX
It prints a JSON object: what `measure` returns.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.classifier import Classifier
from pipeline.model_files import MODEL_FILE
from pipeline.scoring import scorer
from pipeline.timing import times_s

N_SINGLE = 100  # single images, for the 95th percentile
BATCH_IMAGES = 32
N_BATCHES = 5
N_WARM_UP = 5


def measure(folder: Path, height_px: int, width_px: int) -> dict[str, Any]:
    """Load the model in `folder` and score decoded images of this size with it.

    Returns:
        p50_ms and p95_ms of one image, images_per_s of batches of 32, size_mb of the model's file, resident_mb of this
        process once the model is loaded and has answered, n_cores that it may use, height_px and width_px.
    """
    score = scorer(Classifier.load(folder).model)
    images = np.random.default_rng(0).integers(0, 256, (BATCH_IMAGES, height_px, width_px, 3), np.uint8)
    times_s(lambda: score(images[:1]), N_WARM_UP)
    resident_mb = psutil.Process().memory_info().rss / 1e6
    p50_s, p95_s = np.percentile(times_s(lambda: score(images[:1]), N_SINGLE), [50, 95])
    score(images)
    return {
        "p50_ms": 1000 * float(p50_s),
        "p95_ms": 1000 * float(p95_s),
        "images_per_s": BATCH_IMAGES / float(np.median(times_s(lambda: score(images), N_BATCHES))),
        "size_mb": (folder / MODEL_FILE).stat().st_size / 1e6,
        "resident_mb": resident_mb,
        "n_cores": len(os.sched_getaffinity(0)),
        "height_px": height_px,
        "width_px": width_px,
    }


def measure_apart(folder: Path, height_px: int, width_px: int) -> dict[str, Any]:
    """Return `measure` of a fresh process, in whose memory nothing else is."""
    command = [sys.executable, "-m", "pipeline.performance", str(folder), str(height_px), str(width_px)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(finished.stdout)
    return measured


def main() -> None:
    """Measure, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a model that `train` wrote")
    parser.add_argument("height_px", type=int)
    parser.add_argument("width_px", type=int)
    args = parser.parse_args()
    sys.stdout.write(json.dumps(measure(args.folder, args.height_px, args.width_px)) + "\n")


if __name__ == "__main__":
    main()
