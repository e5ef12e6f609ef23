"""Finds and fetches the version to serve from the model registry.

Uses only MLflow's client (mlflow-skinny), which is imported at the first query. A store that does not exist is not
created.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.registry.model_lookup import STARTER_DESCRIPTION
from pipeline.registry.versions import CHALLENGER, PRODUCTION, fetch, version_for_photos


@dataclass(frozen=True)
class Version:
    """A registered model version; `run_id` distinguishes equal numbers of two registries.

    `is_demo` is true only in what an earlier server kept, which served models of drawn images, too.
    """

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
            return f"{STARTER_DESCRIPTION}, because no model trained on real concrete is registered yet"
        state = (
            PRODUCTION if self.is_production else f"{CHALLENGER}, because none of real concrete is in production yet"
        )
        return f"{self.name} version {self.number} ({state})"


@dataclass(frozen=True)
class Registry:
    """The registered model of one name."""

    name: str

    def wanted(self) -> Version | None:
        """Return the version that scores photos, None if that is the starter model.

        Raises UnavailableError if the registry does not answer, CracksError if what was in production was deleted.
        """
        found = version_for_photos(self.name)
        if found is None:
            return None
        return Version(
            name=found.name,
            number=str(found.version),
            run_id=found.run_id or "",
            trained_on=found.tags.get("trained_on", ""),
            is_demo=False,
            is_production=PRODUCTION in found.aliases,
        )

    def fetch(self, version: Version, folder: Path) -> None:
        """Download the files that serving needs into the empty `folder`. Raises UnavailableError."""
        fetch(version.name, version.number, folder, only_served=True)
