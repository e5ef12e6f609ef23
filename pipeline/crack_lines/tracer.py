"""The tracer: a small network that says of each pixel how likely a crack runs through it.

One ships with the project, as a graph of OpenVINO; `python -m pipeline.training.build_tracer` trains it. A registered
model has its own beside its served graph.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from pipeline.data.images import Pixels
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import N_THREADS, CompiledGraph
from pipeline.models.model_files import TRACER_FILE, TRACER_FOLDER, TRACER_HASH, TRACER_WEIGHTS, served_folder

Likelihood = npt.NDArray[np.float32]  # (height, width), 0..1

WAIT_S = 0.1  # between two calls of a check
WINDOW_PX = 256
MARGIN_PX = 32  # around a window, which the network sees, too
SEEN_PX = WINDOW_PX + 2 * MARGIN_PX  # a multiple of 16, as the network needs


class Tracer:
    """The network; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Load the graph, an .xml, and the weights beside it."""
        graph = openvino.Core().read_model(path)
        graph.reshape([1, SEEN_PX, SEEN_PX, 3])  # an eighth faster than with any size
        self._compute = CompiledGraph(graph)
        self._pool = ThreadPoolExecutor(N_THREADS)
        self._lock = threading.Lock()

    @contextmanager
    def reserved(self, check: Callable[[], None]) -> Iterator[None]:
        """Wait until no other thread has reserved it: a search takes 9 bytes a pixel of its photo, and all cores.

        `check` is called again and again; the wait ends with the exception that it raises.
        """
        while not self._lock.acquire(timeout=WAIT_S):
            check()
        try:
            yield
        finally:
            self._lock.release()

    def likelihood(self, pixels: Pixels, searched: npt.NDArray[np.bool_], check: Callable[[], None]) -> Likelihood:
        """Return how likely a crack runs through each pixel; 0 in windows in which nothing is searched.

        Args:
            pixels: RGB, uint8, (height, width, 3).
            searched: where cracks are looked for, (height, width).
            check: called before each window; the search ends with the exception that it raises.
        """
        height, width = searched.shape
        likelihood = np.zeros((height, width), np.float32)
        # Of the photo, mirrored at its edges; a padded copy of a large photo would take much memory.
        rows, columns = (
            np.pad(np.arange(side), (MARGIN_PX, -side % WINDOW_PX + MARGIN_PX), "reflect") for side in searched.shape
        )

        def compute(place: tuple[int, int]) -> None:
            check()
            top, left = place
            window = likelihood[top : top + WINDOW_PX, left : left + WINDOW_PX]  # smaller at the edge of the photo
            if searched[top : top + WINDOW_PX, left : left + WINDOW_PX].any():
                seen = pixels.take(rows[top : top + SEEN_PX], axis=0).take(columns[left : left + SEEN_PX], axis=1)
                found = self._compute(seen[None])["likelihood"][0, MARGIN_PX:, MARGIN_PX:, 0]
                window[:] = found[: len(window), : window.shape[1]]

        list(self._pool.map(compute, product(range(0, height, WINDOW_PX), range(0, width, WINDOW_PX))))
        return likelihood


def tracer_file(folder: Path | None) -> Path:
    """Return the graph of the tracer of the model in `folder`, or of the one that ships if it has none or is None."""
    own = None if folder is None else served_folder(folder) / TRACER_FOLDER
    return own / TRACER_FILE.name if own is not None and own.is_dir() else TRACER_FILE


def tracer_identity(path: Path) -> str:
    """Return a hash of a graph and the weights beside it.

    Raises CracksError if one is missing, or they are not those that were registered, by the hash that `fetch` wrote.
    """
    registered = path.with_name(TRACER_HASH)
    try:
        found = hashlib.sha256(path.read_bytes() + path.with_name(TRACER_WEIGHTS.name).read_bytes()).hexdigest()
        is_changed = registered.exists() and registered.read_text(encoding="utf-8") != found
    except OSError as error:
        raise _no_tracer(path, str(error)) from None
    if is_changed:
        raise _no_tracer(path, f"it or {TRACER_WEIGHTS.name} has changed since it was registered")
    return found


def load_tracer(folder: Path | None = None) -> Tracer:
    """Return the tracer whose graph is `tracer_file`. Raises CracksError if it is damaged, as `tracer_identity`."""
    path = tracer_file(folder)
    tracer_identity(path)
    try:
        return Tracer(path)
    except Exception as error:  # OpenVINO raises exceptions of many types
        raise _no_tracer(path, (str(error).strip() or type(error).__name__).splitlines()[-1]) from None


def _no_tracer(path: Path, reason: str) -> CracksError:
    return CracksError(
        f"{path} is no tracer of crack lines: {reason}. Fetch the model again, or register it again with "
        "`dvc repro --single-item --force register`."
    )
