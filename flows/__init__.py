"""Prefect flows: schedules and retries for the stages that DVC defines."""

import os

from flows.services import local_prefect
from pipeline.project import project_root
from pipeline.stage import use_own_programs

use_own_programs()  # in the process of a run too, which Prefect starts

# Set here because Prefect reads them on import. A local run writes only to the project's folder and sends no telemetry;
# an embedded server on a busy machine gets more than 20 s to start.
os.environ.setdefault("PREFECT_HOME", str(project_root() / ".prefect"))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
if address := local_prefect():  # started by `make up`
    os.environ.setdefault("PREFECT_API_URL", address)
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")  # its messages go to the log of the run
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # outside a run there is no such log
