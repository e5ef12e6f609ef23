"""Run a graph with OpenVINO on all cores of this machine, from several threads at once."""

import os
import threading

import numpy as np
import numpy.typing as npt
import openvino

from pipeline.data.images import Pixels
from pipeline.inference.fast_operations import with_fast_operations
from pipeline.params import Precision

Outputs = dict[str, npt.NDArray[np.float32]]

N_THREADS = os.cpu_count() or 1
WARM_UP_SHAPE = 1, 32, 32, 3  # where the graph takes any


def supported_precision(precision: Precision) -> Precision:
    """Return `precision` if this CPU supports it, else single precision."""
    return precision if precision.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


class CompiledGraph:
    """A compiled graph from uint8 RGB to outputs by name, with one stream per core."""

    def __init__(self, graph: "openvino.Model", precision: Precision = "f32") -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,  # by default, OpenVINO uses bfloat16 where the CPU has it
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": str(N_THREADS),
        }
        if precision == "f32":  # positions of pixels, with which images are resized, need it
            graph = with_fast_operations(graph)
        self._compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._outputs = {output.any_name: output for output in self._compiled.outputs}
        self._thread_local = threading.local()  # an infer request must not be shared between threads
        # The first call makes OpenVINO initialise its use of NumPy; two threads that do that at once deadlock.
        shape = np.maximum(graph.input().get_partial_shape().get_min_shape(), WARM_UP_SHAPE)
        first = self(np.zeros(shape, np.uint8))
        self.shapes = {name: values.shape[1:] for name, values in first.items()}

    def __call__(self, batch: Pixels) -> Outputs:
        """Return the outputs, float32, (n, …) each, for uint8 RGB images of one size, (n, height, width, 3)."""
        if not hasattr(self._thread_local, "request"):
            self._thread_local.request = self._compiled.create_infer_request()
        results = self._thread_local.request.infer({0: batch})
        return {name: np.array(results[output]) for name, output in self._outputs.items()}
