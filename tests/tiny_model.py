"""A model in its served form that needs no training: the darker a picture, the more probable a crack."""

import json

import numpy as np
import openvino
from openvino import opset13 as ops

from pipeline.inference.served import GOLDEN_FILE, GRAPH_FILE, IMAGE_SIZE_KEY
from pipeline.models.decision import DECISION_FILE, Decision
from pipeline.models.model_files import TRACER_FILES

DECISION = Decision(threshold=0.5, review_from=0.2, review_to=0.8, prevalence=0.5)
MIDDLE = 128.0  # grey level of probability 0.5
LEVELS = 20.0  # grey levels to a logit


def probability_of(pixels, middle=MIDDLE):
    """Return what the model says about pixels."""
    return 1 / (1 + np.exp((pixels.mean() - middle) / LEVELS))


def write_blind_tracer(folder):
    """Give the model in `folder` a tracer that finds no crack anywhere."""
    image = ops.parameter([-1, -1, -1, 3], np.uint8, name="image")
    grey = ops.reduce_mean(ops.convert(image, "f32"), np.array([3]), keep_dims=True)  # (n, height, width, 1)
    likelihood = ops.multiply(grey, np.float32(0))
    likelihood.output(0).get_tensor().set_names({"likelihood"})
    openvino.save_model(openvino.Model([likelihood], [image], "blind"), folder / TRACER_FILES[0])


def write_tiny_model(folder, middle=MIDDLE, golden_error=0.0):
    """Write the files of a served model; with an error, its golden answers are wrong by as much."""
    folder.mkdir(parents=True, exist_ok=True)
    image = ops.parameter([-1, -1, -1, 3], np.uint8, name="image")
    means = ops.reduce_mean(ops.convert(image, "f32"), np.array([1, 2]), keep_dims=False)  # (n, 3)
    features = ops.divide(means, np.float32(255))
    grey = ops.reduce_mean(means, np.array([1]), keep_dims=False)  # (n,)
    probability = ops.sigmoid(ops.divide(ops.subtract(np.float32(middle), grey), np.float32(LEVELS)))
    features.output(0).get_tensor().set_names({"features"})
    probability.output(0).get_tensor().set_names({"probability"})
    graph = openvino.Model([probability, features], [image], "tiny")
    graph.set_rt_info(32, IMAGE_SIZE_KEY)
    openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)
    (folder / DECISION_FILE).write_text(json.dumps(DECISION.as_dict()))
    golden = [np.full((8, 8, 3), level, np.uint8) for level in (40, 128, 220)]
    expected = np.array([probability_of(picture, middle) for picture in golden], np.float32) + np.float32(golden_error)
    np.savez(
        folder / GOLDEN_FILE,
        probabilities=expected,
        **{f"image_{number}": picture for number, picture in enumerate(golden)},
    )
