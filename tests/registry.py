"""What the tests of promotion share: a project whose test images are dark or bright, and versions that tell them apart.

All versions have one graph, whose probability of a crack rises as an image darkens; they differ by their threshold. Of
the cracks a tenth each lies at probabilities of 0.05, 0.15, ... 0.95, of the intact images likewise, but shifted down.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from tiny_model import write_blind_tracer

from pipeline.data.images import IMAGES_FILE, INVENTORY_FILE
from pipeline.data.training_images import TRAINING_IMAGES_FILE
from pipeline.params import Params, load_params
from pipeline.registry import runs, tracking

ROOT = Path(__file__).parents[1]
MODEL = "cracks"
N_TEST = 100  # of each label
TAGS = {
    "demo": "false",
    "contract": "passed",
    "dvc.data/walls.zip": "aaa",
    runs.COMMIT_TAG: "0" * 40,
    runs.DIRTY_TAG: "false",
}
RULES = {
    "approval": "automatic",
    "floors": {"f1": 0.8, "recall": 0.8},
    "max_ece": 0.5,
    "min_slice_recall": 0.0,
    "min_source_auroc": 0.7,
    "min_groups": 150,
    "margins": {"test": 0.05, "slice": 0.5, "external": 0.5, "tracer": 0.05},
    "budgets": {"p95_ms": 5000, "resident_mb": 5000, "size_mb": 100},
}


def write_data(root: Path) -> None:
    """Write a data set of grey tiles: cracks of level 40 to 139, intact images of 120 to 219; each is a group."""
    folder = root / "data" / "datasets" / "walls"
    folder.mkdir(parents=True)
    rows, offset = [], 0
    with (folder / IMAGES_FILE).open("wb") as packed:
        for label, lowest in (("crack", 40), ("intact", 120)):
            for number in range(N_TEST):
                tile = Image.new("RGB", (32, 32), (lowest + number,) * 3)
                path = root / "tile.png"
                tile.save(path)
                content = path.read_bytes()
                packed.write(content)
                rows.append(
                    {
                        "path": f"{label}/{number}.png",
                        "label": label,
                        "sha256": f"{label}{number:03}",
                        "offset": offset,
                        "n_bytes": len(content),
                        "height": 32,
                        "width": 32,
                        "brightness": float(lowest + number),
                        "sharpness": 10.0,
                    }
                )
                offset += len(content)
    inventory = pd.DataFrame(rows)
    inventory.to_parquet(folder / INVENTORY_FILE)
    manifest = inventory[["path", "label", "sha256"]].assign(
        dataset="walls", row=range(len(rows)), slice="", photo=None, group=inventory["sha256"], split="test"
    )
    manifest.to_parquet(root / "data" / "manifest.parquet")


def write_params(root: Path, *, model: str = MODEL, **promote: object) -> Params:
    """Write params.yaml with the rules of these tests, and `promote` over them."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["register"]["name"] = model
    params["promote"] = RULES | promote
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return load_params(root / "params.yaml")


def write_graph(folder: Path) -> None:
    """Write the served form of the one graph: sigmoid((130 - mean grey level) / 10)."""
    from pipeline.inference.conversion import write_served
    from pipeline.models.calibration import Calibration, Platt, calibrated
    from pipeline.models.classifier import Classifier
    from pipeline.models.decision import Decision
    from pipeline.models.network import build_classifier
    from pipeline.models.tf import keras

    network = keras.Sequential(
        [keras.Input((None, None, 3), name="normalised"), keras.layers.GlobalAveragePooling2D(name="mean")], name="net"
    )
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    # (level / 255 - mean) / std, of green alone: back to levels
    mean, std = 0.456, 0.224
    weights = np.array([[0.0], [-255 * std / 10], [0.0]])
    head.set_weights([weights, np.array([(130 - 255 * mean) / 10])])
    golden = [np.full((32, 32, 3), level, np.uint8) for level in (60, 200)]
    model = calibrated(classifier, Calibration((Platt(1.0, 0.0),)))
    write_served(Classifier(model, Decision(0.5, 0.5, 0.5)), golden, folder)


@dataclass
class Registry:
    """A project with a store, in which versions are cheap."""

    root: Path
    graph: Path
    name: str

    @cached_property
    def client(self):
        client, _ = tracking.connect()
        client.create_registered_model(self.name)
        return client

    def add(
        self, threshold: float, learned: tuple[str, ...] = (), without: str = "", blind: bool = False, **tags: str
    ) -> str:
        """Register a version, with all tags that the gate asks for unless `tags` say otherwise; return its number.

        A blind one has a tracer of its own, which finds no crack; the others have none.
        """
        folder = self.root / "version"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.graph, folder / "extra_files")
        decision = {"threshold": threshold, "review_from": threshold, "review_to": threshold}
        (folder / "extra_files" / "decision.json").write_text(json.dumps(decision))
        pd.DataFrame({"sha256": learned, "photo": None}, dtype="str").to_parquet(
            folder / "extra_files" / TRAINING_IMAGES_FILE
        )
        if blind:
            write_blind_tracer(folder / "extra_files")
        if without:
            (folder / "extra_files" / without).unlink()
        experiment_id = tracking.experiment_id(self.client, tracking.EXPERIMENT)
        run = self.client.create_run(experiment_id, tags={runs.DIRTY_TAG: "false"})
        self.client.log_artifacts(run.info.run_id, str(folder), "model")
        version = self.client.create_model_version(
            self.name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=TAGS | tags
        )
        return str(version.version)

    def production(self) -> str | None:
        aliases = self.client.get_registered_model(self.name).aliases
        return str(aliases["production"]) if "production" in aliases else None

    def state(self, version: str) -> str | None:
        return self.client.get_model_version(self.name, version).tags.get("state")


def make_registry(root: Path, graph: Path, empty_store: Path | None, name: str = MODEL) -> Registry:
    """Make a project in `root`, with a copy of an empty store if one is given."""
    (root / ".dvc").mkdir(parents=True)
    (root / "mlflow").mkdir()
    if empty_store is not None:
        shutil.copy(empty_store, root / "mlflow" / "mlflow.db")
    write_data(root)
    write_params(root, model=name)
    os.environ["DVC_ROOT"] = str(root)
    return Registry(root, graph, name)
