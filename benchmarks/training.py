"""Compares cost and F1 of the published way of fine-tuning with those of a probe, on one split.

    python -m benchmarks.training --metu metu-subset.zip

Ingests, splits and sets up MLflow's store once, then trains and scores each candidate in its own processes, one after
the other: the published fine-tuning (examples/params.published-recipe.yaml), and the probe of
examples/params.metu.yaml, embedding included. The probe is trained before and after the fine-tuning and its costs are
averaged, because the speed of a shared machine drifts. Prints CPU seconds (user and system), wall seconds, the peak
resident memory, and for the images of validation and test the F1 and the difference of the F1 with a paired 95 %
bootstrap interval over groups.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

N_RESAMPLES = 2000
OURS, USUAL = "params.metu.yaml", "params.published-recipe.yaml"


def env() -> dict[str, str]:
    """Return the environment of all processes, with MLflow's store in the working folder."""
    Path("mlflow.db").touch()  # an empty file is an empty database; a missing one would be a mistyped path
    return os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}


@dataclass
class Cost:
    """Cost of processes: CPU and wall seconds, and the peak resident memory of one, in GB."""

    cpu_s: float = 0
    wall_s: float = 0
    peak_gb: float = 0

    def run(self, module: str, *arguments: str) -> None:
        """Run a module of this project and add its cost."""
        started_s = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], env=env())
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{module} failed")
        self.wall_s += time.perf_counter() - started_s
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.peak_gb = max(self.peak_gb, usage.ru_maxrss / 1e6)


def write_params(example: Path, archive: Path, target: Path) -> dict[str, Any]:
    """Write the params of `example` for `archive`; return them."""
    params = yaml.safe_load(example.read_text(encoding="utf-8"))
    params["datasets"] = {"metu": {"source": str(archive.absolute())}}
    target.write_text(yaml.safe_dump(params), encoding="utf-8")
    return dict(params)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean times of repeated trainings, and the largest memory."""
    return Cost(
        cpu_s=statistics.mean(cost.cpu_s for cost in costs),
        wall_s=statistics.mean(cost.wall_s for cost in costs),
        peak_gb=max(cost.peak_gb for cost in costs),
    )


def prepare_once(params: Path) -> None:
    """Run the stages before embedding in the working folder, and set up the store that runs are logged to."""
    cost = Cost()
    common = ["--params", str(params)]
    cost.run("pipeline.ingest", *common, "--dataset", "metu", "--out", "datasets/metu")
    cost.run(
        "pipeline.validate", *common, "--name", "metu", "--dataset", "datasets/metu", "--context", "gx",
        "--report", "v.json", "--page", "v.html", "--result", "validated/metu.json",
    )  # fmt: skip
    cost.run(
        "pipeline.split", *common, "--datasets", "datasets", "--validated", "validated", "--manifest",
        "manifest.parquet", "--summary", "s.json", "--context", "gx", "--report", "vs.json", "--page", "vs.html",
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", "from pipeline.registry.tracking import connect; connect()"], env=env(), check=True
    )


def train(params: Path, candidate: str, backbone: str, *, embeds: bool) -> Cost:
    """Train a candidate into models/CANDIDATE, after embedding if `embeds`; return the cost."""
    cost = Cost()
    common = ["--params", str(params), "--datasets", "datasets"]
    if embeds:
        cost.run(
            "pipeline.embed", *common, "--backbone", backbone, "--manifest", "manifest.parquet", "--checkpoints",
            "unfinished/embed", "--out", "features",
        )  # fmt: skip
    cost.run(
        "pipeline.train", *common, "--candidate", candidate, "--manifest", "manifest.parquet", "--features", "features",
        "--checkpoints", "unfinished/train", "--out", f"models/{candidate}", "--scores", f"{candidate}.json",
        "--history", f"{candidate}.csv",
    )  # fmt: skip
    return cost


def called_cracks(candidate: str) -> pd.DataFrame:
    """Return the images of validation and test, with the column `called`: whether the candidate predicts a crack."""
    from pipeline.data.images import LabelledImages
    from pipeline.models.classifier import Classifier

    manifest = pd.read_parquet("manifest.parquet")
    images = LabelledImages(manifest[manifest["split"].isin(("validation", "test"))], Path("datasets"))
    classifier = Classifier.load(Path("models") / candidate)
    probabilities = classifier.probabilities(images, progress=f"scoring {candidate}")
    return images.rows.assign(called=probabilities >= classifier.decision.threshold)


def f1_of(images: pd.DataFrame, weights: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    """Return the F1 where row i counts weights[i] times."""
    crack, called = (images["label"] == "crack").to_numpy(), images["called"].to_numpy()
    found = weights @ (crack & called)
    return float(2 * found / (weights @ crack + weights @ called))


def paired_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[float, float, float]:
    """Return F1 of `ours` minus F1 of `theirs` on the same images, and its 95 % interval over groups."""
    group, n_groups = pd.factorize(ours["group"])[0], ours["group"].nunique()
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(N_RESAMPLES):
        weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups))[group].astype(np.float64)
        differences.append(f1_of(ours, weights) - f1_of(theirs, weights))
    once = np.ones(len(ours))
    low, high = np.quantile(differences, [0.025, 0.975])
    return f1_of(ours, once) - f1_of(theirs, once), float(low), float(high)


def print_table(costs: dict[str, Cost], scored: dict[str, pd.DataFrame]) -> None:
    """Print a row for each candidate, the ratios of the costs, and the paired difference of the F1."""
    print(
        "| candidate | CPU s | wall s | peak GB | F1 | errors | images |\n| --- | --: | --: | --: | --: | --: | --: |"
    )
    for name, cost in costs.items():
        images = scored[name]
        n_errors = int(((images["label"] == "crack") != images["called"]).sum())
        f1 = f1_of(images, np.ones(len(images)))
        print(
            f"| {name} | {cost.cpu_s:.0f} | {cost.wall_s:.0f} | {cost.peak_gb:.1f} | {f1:.4f} | {n_errors} "
            f"| {len(images):,} |"
        )
    (ours, cheap), (theirs, usual) = costs.items()
    difference, low, high = paired_difference(scored[ours], scored[theirs])
    print(
        f"\n{usual.cpu_s / cheap.cpu_s:.1f} times the CPU seconds, {usual.wall_s / cheap.wall_s:.1f} times the wall "
        f"seconds. F1 of ours minus theirs: {difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f})."
    )


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    args = parser.parse_args()
    archive, examples = args.metu.absolute(), Path("examples").absolute()
    os.environ["PYTHONPATH"] = str(Path.cwd())
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        costs: dict[str, list[Cost]] = {}
        for name in (OURS, USUAL, OURS):
            params = write_params(examples / name, archive, Path(name))
            ((candidate, settings),) = params["candidates"].items()
            if not costs:
                prepare_once(Path(name))
            embeds = settings["kind"] == "probe"
            cost = train(Path(name), candidate, settings["backbone"], embeds=embeds)
            costs.setdefault(candidate, []).append(cost)
        scored = {candidate: called_cracks(candidate) for candidate in costs}
        print_table({candidate: mean_cost(several) for candidate, several in costs.items()}, scored)


if __name__ == "__main__":
    main()
