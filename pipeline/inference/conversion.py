"""Convert a Keras model to the served model."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from pipeline.data.images import Pixels
from pipeline.files import write_json
from pipeline.inference.served import GOLDEN_FILE, GRAPH_FILE, IMAGE_SIZE_KEY
from pipeline.models.classifier import Classifier
from pipeline.models.decision import DECISION_FILE
from pipeline.models.network import to_openvino


def write_served(classifier: Classifier, golden: list[Pixels], folder: Path) -> None:
    """Convert a classifier to OpenVINO and write the files of the served model, SERVED_FILES, into an existing folder.

    The `golden` images are stored with its probabilities, to check the served model after loading.
    """
    model = classifier.model
    converted = to_openvino(model)
    converted.set_rt_info(model.get_layer("resize").height, IMAGE_SIZE_KEY)
    openvino.save_model(converted, folder / GRAPH_FILE, compress_to_fp16=False)
    answers = [model(image[None], training=False)["probability"].numpy()[0] for image in golden]
    images = {f"image_{number}": image for number, image in enumerate(golden)}
    arrays: dict[str, Any] = {"probabilities": np.array(answers, np.float32), **images}
    np.savez_compressed(folder / GOLDEN_FILE, **arrays)
    write_json(folder / DECISION_FILE, classifier.decision.as_dict())
