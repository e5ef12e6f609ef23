"""Holds the model that answers: the one on disk at the start, then whatever the registry wants, swapped in when proven.

A new model is fetched, loaded and held against its golden images beside the one that answers; only then does a single
assignment put it in place, so that no request waits or fails. Requests that began with the old one end with it.
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.errors import CracksError, UnavailableError
from pipeline.files import replacing_folder, write_json
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, load_detector
from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel
from pipeline.params import Map
from serving.wanted_version import Registry, Version

log = logging.getLogger(__name__)

LAST_GOOD_FILE = "last-good.json"
STARTER = Version("starter", "0", "", trained_on="metu+sdnet", is_demo=False, is_production=False)


@dataclass(frozen=True)
class Held:
    """A proven model and what it is."""

    model: ServedModel
    mapper: CrackMapper
    version: Version
    since: datetime


class NotServableError(CracksError):
    """The model is broken, or does not answer as it did when it was registered."""


def proven(folder: Path) -> tuple[ServedModel, OutOfDistributionDetector | None]:
    """Load a model, hold it against its golden images, and load what concrete it knows, where that is recorded.

    Raises:
        NotServableError: it cannot be loaded, or its answers differ.
    """
    try:
        model = ServedModel.load(folder)
        difference = model.golden_difference()
        known = load_detector(folder)
    except Exception as error:  # on damaged files, libraries raise whatever they come upon
        raise NotServableError(str(error)) from error
    if not difference <= MAX_GOLDEN_DIFFERENCE:  # NaN differs too
        raise NotServableError(
            f"on its golden images it differs by {difference:.2g} from the answers of its training, "
            f"{MAX_GOLDEN_DIFFERENCE:g} is allowed. Register it again."
        )
    return model, known


class ModelHolder:
    """The current model, kept up to date by a thread."""

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        poll_s: float,
        cut: Map,
        starter: Path | None,
        now: Callable[[], datetime],
    ) -> None:
        """Prepare; `start` does the rest.

        Args:
            registry: where models come from.
            folder: keeps the last good model; of this server alone.
            poll_s: an answer is of a version that the registry wanted this many seconds before it, or later. Half of
                it passes between two looks at the registry; fetching and loading have the other half.
            cut: how photos are cut to be mapped.
            starter: folder of a model that answers while none is registered.
            now: the clock.
        """
        self.current: Held | None = None
        self.refused: Version | None = None
        self.n_swaps = 0
        self.n_refusals = 0
        self.is_registry_away = False
        self._registry = registry
        self._folder = folder
        self._poll_s = poll_s
        self._cut = cut
        self._starter = starter
        self._now = now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="model holder", daemon=True)

    def start(self) -> None:
        """Hold the last good model, if there is one on disk, and follow the registry from now on."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._load_last_good()
        self._tidy()
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer."""
        self._stopping.set()
        self._thread.join()

    def poll(self) -> None:
        """Ask the registry once, and swap if it wants another model.

        Raises:
            UnavailableError: the registry, or the files of the model, cannot be had now.
        """
        wanted = self._registry.wanted()
        if wanted is None:
            self._hold_starter()
            return
        if wanted == self.refused:
            return
        if self.current is not None and wanted.is_same_model(self.current.version):
            self.refused = None
            if wanted != self.current.version:  # it was promoted
                self._hold(replace(self.current, version=wanted))
            return
        folder = self._folder_of(wanted)
        with replacing_folder(folder) as partial:
            self._registry.fetch(wanted, partial)
        try:
            held = self._loaded(folder, wanted)
        except NotServableError as error:
            shutil.rmtree(folder)
            self.refused = wanted
            self.n_refusals += 1
            still = "Nothing is served." if self.current is None else f"Still serving {self.current.version}."
            log.error("%s is refused: %s %s", wanted, error, still)
            return
        self._hold(held)

    def _loaded(self, folder: Path, version: Version) -> Held:
        model, known = proven(folder)
        return Held(model, CrackMapper(model, self._cut, known), version, self._now())

    def _hold(self, held: Held) -> None:
        # First, so that a server that is killed as soon as it answers finds the model when it starts again.
        write_json(self._folder / LAST_GOOD_FILE, asdict(held.version))
        self.current = held
        self.refused = None
        self.n_swaps += 1
        log.info("Serving %s", held.version)
        self._tidy()

    def _hold_starter(self) -> None:
        """Answer with the starter model, if there is one and nothing was ever registered."""
        if self.current is None and self._starter is not None:
            self.current = self._loaded(self._starter, STARTER)
            log.info("Serving %s", STARTER)

    def _folder_of(self, version: Version) -> Path:
        return self._folder / f"{version.name}-{version.number}-{version.run_id}"

    def _load_last_good(self) -> None:
        file = self._folder / LAST_GOOD_FILE
        try:
            version = Version(**json.loads(file.read_text(encoding="utf-8")))
            self.current = self._loaded(self._folder_of(version), version)
        except FileNotFoundError:
            return
        except (NotServableError, OSError, ValueError, TypeError) as error:
            log.warning("The last good model in %s cannot be used: %s. Waiting for the registry.", self._folder, error)
            return
        log.info("Serving %s, as kept in %s", version, self._folder)

    def _tidy(self) -> None:
        """Remove what older models and killed processes left."""
        kept = None if self.current is None else self._folder_of(self.current.version)
        for path in self._folder.iterdir():
            if path.is_dir() and path != kept:
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll()
                self._note_registry(None)
            except UnavailableError as error:
                self._note_registry(error)
            except Exception:
                log.exception("Looking for another model failed")  # the one that answers goes on
            self._stopping.wait(self._poll_s / 2)

    def _note_registry(self, error: UnavailableError | None) -> None:
        is_away = error is not None
        if is_away and not self.is_registry_away:
            log.warning("%s Looking again every %g s.", error, self._poll_s / 2)
        if self.is_registry_away and not is_away:
            log.info("The registry answers again.")
        self.is_registry_away = is_away
