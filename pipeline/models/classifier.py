"""A trained classifier: the exported graph and its decision rule, loaded from a folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.errors import CracksError
from pipeline.models.decision import DECISION_FILE, Decision, load_decision
from pipeline.models.model_files import MODEL_FILE, keras_file, served_folder
from pipeline.models.network import run_in_batches
from pipeline.models.tf import keras


@dataclass(frozen=True)
class Classifier:
    """The graph from uint8 RGB to {"probability", "features"}, and the rule that turns a probability into a verdict."""

    model: keras.Model
    decision: Decision

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Load the model that `train` wrote or that was fetched from the registry; raises `CracksError` without one."""
        try:
            decision = load_decision(served_folder(folder))
            return cls(keras.models.load_model(keras_file(folder), compile=False, safe_mode=True), decision)
        except Exception as error:  # the layers that a file names raise whatever they like
            raise CracksError(
                f"{folder} contains no model that can be loaded: {error}. It needs {MODEL_FILE} and {DECISION_FILE}, "
                "as `dvc repro` writes them into models/CANDIDATE."
            ) from error

    def probabilities(self, images: Images, *, progress: str) -> npt.NDArray[np.float32]:
        """Return the probability of a crack in each image, float32, (n,); `progress` labels the progress bar."""
        probabilities = np.empty(len(images.sizes), np.float32)
        for positions, outputs in run_in_batches(self.model, images, progress=progress):
            probabilities[positions] = outputs["probability"]
        return probabilities

    def content_hash(self) -> str:
        """Return a hash of all that determines a verdict, the same for each file that the same model was saved in."""
        digest = hashlib.sha256(json.dumps(self.decision.as_dict(), sort_keys=True).encode())
        digest.update(json.dumps(self.model.get_config(), sort_keys=True, default=str).encode())
        for variable in self.model.variables:
            value = np.ascontiguousarray(variable.numpy())
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()
