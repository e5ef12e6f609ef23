"""Holds the current model: at the start the last good one on disk, later the version that the registry wants.

A new version is fetched, loaded and checked against its golden images while the old one answers. Then one assignment
replaces the old model, so that no request waits or fails. Running requests end with the model that they began with.
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline.crack_lines.tracer import Tracer, load_tracer
from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.errors import CracksError
from pipeline.files import replacing_folder, write_json
from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel
from pipeline.params import Map
from serving.wanted_version import Registry, Version

log = logging.getLogger(__name__)

LAST_GOOD_FILE = "last-good.json"
STARTER = Version("starter", "0", "", trained_on="metu+sdnet", is_demo=False, is_production=False)


@dataclass(frozen=True)
class LoadedModel:
    """A verified model and its version."""

    model: ServedModel
    mapper: CrackMapper
    version: Version
    since: datetime


class NotServableError(CracksError):
    """The model is broken, or its answers differ from those at registration."""


def load_verified(folder: Path) -> tuple[ServedModel, Tracer]:
    """Return a model that passed the check of its golden images, and its tracer of crack lines.

    Raises NotServableError if one cannot be loaded, or the answers differ.
    """
    try:
        model, tracer = ServedModel.load(folder), load_tracer(folder)
        difference = model.golden_difference()
    except Exception as error:  # on damaged files, libraries raise exceptions of any type
        raise NotServableError(str(error)) from error
    if not difference <= MAX_GOLDEN_DIFFERENCE:  # true for NaN, too
        raise NotServableError(
            f"on its golden images it differs by {difference:.2g} from the model that was trained; "
            f"{MAX_GOLDEN_DIFFERENCE:g} is allowed. Register it again."
        )
    return model, tracer


class ModelHolder:
    """Keeps the current model up to date, in a thread."""

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        poll_s: float,
        map_params: Map,
        starter: Path | None,
        now: Callable[[], datetime],
    ) -> None:
        """Store the settings; `start` starts the thread.

        `folder` keeps the last good model, one for each server; `starter` has the model to use while none is
        registered. `poll_s` is the longest time from a change of the registry to answers of the new version: the
        registry is polled every poll_s / 2; fetching and loading have the other half.
        """
        self.current: LoadedModel | None = None
        self.refused: Version | None = None
        self.n_swaps = 0
        self.n_refusals = 0
        self.is_registry_unavailable = False
        self._registry = registry
        self._folder = folder
        self._poll_s = poll_s
        self._map_params = map_params
        self._starter = starter
        self._now = now
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="model holder", daemon=True)

    def start(self) -> None:
        """Load the last good model, if there is one on disk, and start to poll the registry."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._load_last_good()
        self._remove_unused_folders()
        self._thread.start()

    def stop(self) -> None:
        """Stop polling."""
        self._stopping.set()
        self._thread.join()

    def poll(self) -> None:
        """Query the registry once, and swap the model if another version is wanted.

        Raises UnavailableError if the registry or the files of the model are unavailable.
        """
        wanted = self._registry.wanted()
        if wanted is None:
            self._serve_starter()
            return
        if wanted == self.refused:
            return
        if self.current is not None and wanted.is_same_model(self.current.version):
            self.refused = None
            if wanted != self.current.version:  # it was promoted
                self._swap_in(replace(self.current, version=wanted))
            return
        folder = self._folder_of(wanted)
        with replacing_folder(folder) as partial:
            self._registry.fetch(wanted, partial)
        try:
            loaded = self._load(folder, wanted)
        except NotServableError as error:
            shutil.rmtree(folder)
            self.refused = wanted
            self.n_refusals += 1
            still = "Nothing is served." if self.current is None else f"Still serving {self.current.version}."
            log.error("%s is refused: %s %s", wanted, error, still)
            return
        self._swap_in(loaded)

    def _load(self, folder: Path, version: Version) -> LoadedModel:
        model, tracer = load_verified(folder)
        return LoadedModel(model, CrackMapper(model, self._map_params, tracer), version, self._now())

    def _swap_in(self, loaded: LoadedModel) -> None:
        # Before the swap: a server that is killed right after its first answer finds the model when it restarts.
        write_json(self._folder / LAST_GOOD_FILE, asdict(loaded.version))
        self.current = loaded
        self.refused = None
        self.n_swaps += 1
        log.info("Serving %s", loaded.version)
        self._remove_unused_folders()

    def _serve_starter(self) -> None:
        """Use the starter model, if there is one and no other model is loaded."""
        if self.current is None and self._starter is not None:
            self.current = self._load(self._starter, STARTER)
            log.info("Serving %s", STARTER)

    def _folder_of(self, version: Version) -> Path:
        return self._folder / f"{version.name}-{version.number}-{version.run_id}"

    def _load_last_good(self) -> None:
        file = self._folder / LAST_GOOD_FILE
        try:
            version = Version(**json.loads(file.read_text(encoding="utf-8")))
            if version.is_demo:
                return
            self.current = self._load(self._folder_of(version), version)
        except FileNotFoundError:
            return
        except (NotServableError, OSError, ValueError, TypeError) as error:
            log.warning("The last good model in %s cannot be used: %s. Waiting for the registry.", self._folder, error)
            return
        log.info("Serving %s, as kept in %s", version, self._folder)

    def _remove_unused_folders(self) -> None:
        """Remove the folders of older models and of killed processes."""
        kept = None if self.current is None else self._folder_of(self.current.version)
        for path in self._folder.iterdir():
            if path.is_dir() and path != kept:
                shutil.rmtree(path, ignore_errors=True)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll()
                if self.is_registry_unavailable:
                    log.info("The registry answers again.")
                self.is_registry_unavailable = False
            except CracksError as error:
                if not self.is_registry_unavailable:
                    log.warning("%s Trying again every %g s.", error, self._poll_s / 2)
                self.is_registry_unavailable = True
            except Exception:
                log.exception("Polling the registry failed")  # the current model stays
            self._stopping.wait(self._poll_s / 2)
