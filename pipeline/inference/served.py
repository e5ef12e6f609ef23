"""The served model: a model as OpenVINO runs it, so that a process that scores needs no TensorFlow.

Its files are registered beside the Keras model: the complete graph in single precision, the decision rule, the
out-of-distribution detector, and a few golden images with the answers of the Keras model.
`pipeline.inference.conversion.write_served` writes them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import openvino
from tqdm import tqdm

from pipeline.data.images import Images, Pixels, Sizes, batches_by_size
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import N_THREADS, CompiledGraph, Outputs
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, detector_projection, load_detector
from pipeline.models.decision import DECISION_FILE, Decision, Verdict, at_prevalence, load_decision
from pipeline.models.model_files import served_folder

GRAPH_FILE = "openvino.xml"
WEIGHTS_FILE = "openvino.bin"
GOLDEN_FILE = "golden.npz"
DAMAGED = (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, BadZipFile)  # raised on such files
SERVED_FILES = (DECISION_FILE, GRAPH_FILE, WEIGHTS_FILE, GOLDEN_FILE)
IMAGE_SIZE_KEY = "image_size_px"  # in the metadata of the graph
MAX_GOLDEN_DIFFERENCE = 1e-3  # of a probability; Keras and OpenVINO differ by about 1e-5
BATCH_IMAGES = 8  # larger ones are no faster on a CPU, because their activations do not fit its cache
MAX_BATCH_PIXELS = 8_000_000  # 100 MB as float32 input of the network

UNSURE, UNLIKE = "unsure", "unlike the training images"  # why an image is for review


class Labels(NamedTuple):
    """What a model says about images, in their order."""

    probability: npt.NDArray[np.float32]  # corrected, if a prevalence was stated
    label: list[Verdict]
    reason: list[str]  # why it is for review, "" for the others
    in_distribution: list[bool | None]  # None: the model cannot tell


class ServedModel:
    """The graph from uint8 RGB to a probability and features, and what turns these into a label.

    Attributes:
        decision: the threshold and the review band.
        detector: the out-of-distribution detector; None if the model has none.
        image_size_px: size to which the graph resizes an image.
        n_features: number of features of an image.
    """

    def __init__(
        self, graph: "openvino.Model", decision: Decision, detector: OutOfDistributionDetector | None, golden: Path
    ) -> None:
        self.decision = decision
        self.detector = detector
        self.image_size_px = int(graph.get_rt_info(IMAGE_SIZE_KEY).astype(int))
        self._compute = CompiledGraph(graph)
        (self.n_features,) = self._compute.shapes["features"]
        self._golden = golden

    @classmethod
    def load(cls, folder: Path) -> "ServedModel":
        """Load the served model from a folder fetched from the registry, or from a flat folder.

        Raises CracksError if a file is missing or damaged.
        """
        files = served_folder(folder)
        missing = [name for name in SERVED_FILES if not (files / name).is_file()]
        if missing:
            raise CracksError(
                f"{folder} contains no model that can be served: {', '.join(missing)} is missing. Register it again "
                "with `dvc repro --single-item --force register`."
            )
        try:
            graph = openvino.Core().read_model(files / GRAPH_FILE)
            return cls(graph, load_decision(files), load_detector(files), files / GOLDEN_FILE)
        except DAMAGED as error:
            reason = str(error).strip().splitlines()[-1]
            raise CracksError(
                f"{folder} contains no model that can be served: {reason}. Fetch it again, or register it again with "
                "`dvc repro --single-item --force register`."
            ) from None

    def outputs(self, batch: Pixels) -> Outputs:
        """Return {"probability": (n,), "features": (n, n_features)}, float32, for uint8 RGB (n, height, width, 3).

        Thread-safe; there is one stream per core.
        """
        return self._compute(batch)

    def labels(self, outputs: Outputs, prevalence: float | None = None) -> Labels:
        """Return what the model says about images with these `outputs`; one out-of-distribution is for review.

        Probabilities are corrected for `prevalence`, the share of cracks above 0 and below 1 that a person states.
        Raises CracksError if one is stated, and it is not recorded which one the model assumes.
        """
        probabilities = outputs["probability"]
        if prevalence is not None:
            probabilities = at_prevalence(probabilities, **self.decision.correction(prevalence))
        in_distribution: list[bool | None] = [None] * len(probabilities)
        if self.detector is not None and self.detector.limit is not None:
            distances = self.detector.distances(detector_projection(outputs["features"]))
            in_distribution = (distances <= self.detector.limit).tolist()
        labels, reasons = [], []
        for probability, is_known in zip(probabilities.tolist(), in_distribution, strict=True):
            labels.append("review" if is_known is False else self.decision.verdict(probability))
            reasons.append("" if labels[-1] != "review" else UNLIKE if is_known is False else UNSURE)
        return Labels(probabilities, labels, reasons, in_distribution)

    def golden_difference(self) -> float:
        """Return the largest difference, 0..1, from the Keras model's probabilities for the golden images.

        Raises CracksError if the golden images cannot be read.
        """
        try:
            with self._golden.open("rb") as file, np.load(file) as arrays:
                expected = arrays["probabilities"]
                images = [arrays[f"image_{number}"] for number in range(len(expected))]
        except DAMAGED as error:
            raise CracksError(
                f"The golden images {self._golden.name} cannot be read: {error}. Fetch the model again."
            ) from None
        answers = [float(self.outputs(image[None])["probability"][0]) for image in images]
        return float(np.abs(np.array(answers) - expected).max())


def bounded_batches(sizes: Sizes) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the positions of images of one size, limited in images and pixels; `sizes` are (height, width), (n, 2)."""
    for batch in batches_by_size(sizes, BATCH_IMAGES):
        n_images = max(1, MAX_BATCH_PIXELS // max(1, int(sizes[batch[0]].prod())))
        yield from (batch[start : start + n_images] for start in range(0, len(batch), n_images))


def served_outputs(
    model: ServedModel, images: Images, *, progress: str
) -> Iterator[tuple[npt.NDArray[np.int64], Outputs]]:
    """Run a model over all images in batches of one size; yield (positions, outputs), not in the order of the images.

    Each thread decodes a batch and then computes it, so that no core is idle. `progress` labels the progress bar.
    """

    def compute(positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Outputs]:
        return positions, model.outputs(np.stack([images.pixels(int(position)) for position in positions]))

    with (
        ThreadPoolExecutor(N_THREADS) as pool,
        tqdm(total=len(images.sizes), desc=progress, unit=" images", disable=None) as bar,
    ):
        for positions, outputs in pool.map(compute, bounded_batches(images.sizes)):
            yield positions, outputs
            bar.update(len(positions))
