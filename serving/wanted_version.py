"""Finds and fetches the version to serve from the model registry.

Uses only MLflow's client (mlflow-skinny), which is imported at the first query. A store that does not exist is not
created.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UnavailableError
from pipeline.registry.tracking import first_line, open_client, shown_uri, tracking_uri
from pipeline.registry.versions import PRODUCTION, fetch, find_version

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Version:
    """A registered model version; `run_id` distinguishes equal numbers of two registries."""

    name: str
    number: str
    run_id: str
    trained_on: str
    is_demo: bool
    is_production: bool

    def is_same_model(self, other: "Version") -> bool:
        """Return whether both are the same model, regardless of the alias."""
        return (self.name, self.number, self.run_id) == (other.name, other.number, other.run_id)

    def __str__(self) -> str:
        """Return a description for users."""
        if not self.run_id:
            return "the starter model, because no other is registered yet"
        state = f" ({PRODUCTION})" if self.is_production else ", the newest: none is in production yet"
        return f"{self.name} version {self.number}{state}" + (", trained on drawn images (demo)" * self.is_demo)


class Registry:
    """The registered model of one name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def wanted(self) -> Version | None:
        """Return the version under alias `production`, else the newest; None if no version is registered.

        Raises UnavailableError if the registry does not answer.
        """
        uri = tracking_uri()
        if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
            return None
        client = open_client()
        from mlflow.exceptions import MlflowException

        found = find_version(client, self._name, PRODUCTION)
        if found is not None:
            return _version(found, is_production=True)
        try:
            versions = client.search_model_versions(f"name = '{self._name}'")
        except (MlflowException, OSError) as error:
            raise UnavailableError(f"The registry {shown_uri()} does not answer: {first_line(error)}.") from None
        newest = max(versions, key=lambda version: int(version.version), default=None)
        return None if newest is None else _version(newest, is_production=False)

    def fetch(self, version: Version, folder: Path) -> None:
        """Download the files that serving needs into the empty `folder`. Raises UnavailableError."""
        fetch(version.name, version.number, folder, only_served=True)


def _version(found: "ModelVersion", *, is_production: bool) -> Version:
    return Version(
        name=found.name,
        number=str(found.version),
        run_id=found.run_id or "",
        trained_on=found.tags.get("trained_on", ""),
        is_demo=found.tags.get("demo") == "true",
        is_production=is_production,
    )
