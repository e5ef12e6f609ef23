"""When and how often: thin Prefect flows over the stages that DVC owns."""

import os

from flows.services import local_prefect
from pipeline.project import project_root

# Prefect reads these when it is imported, so they stand here. Nothing of a local run leaves the project's folder or
# reports home, and an embedded server on a busy machine has more than 20 s to start.
os.environ.setdefault("PREFECT_HOME", str(project_root() / ".prefect"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if address := local_prefect():  # of `make up`
    os.environ.setdefault("PREFECT_API_URL", address)
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")  # what it says belongs in the log of the run
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # said outside of a run, it has no such log
