"""The monitoring flow: compares photos in production with the images the model was trained on."""

from datetime import UTC, datetime

from prefect import State, flow
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.states import Completed

from flows import flow_runs
from flows.flow_runs import failed
from pipeline.errors import CracksError
from pipeline.monitoring import drift_check as watch
from pipeline.params import load_params
from pipeline.project import project_root


@flow(name="monitoring", on_running=[flow_runs.record_process])
def monitoring() -> State:
    """Compare the photos since the last window with what the model was trained on; the verdict is the state's name."""
    root = project_root()
    try:
        finding = watch.run(load_params(root / "params.yaml"), root, datetime.now(UTC))
    except (CracksError, OSError) as error:
        return failed(error)
    if finding.comparison is not None:
        create_table_artifact(finding.comparison.table(), key="drift", description="\n\n".join(finding.lines))
    if (image := watch.windows_plot_uri(root)) is not None:
        create_image_artifact(
            image, key="drift-windows", description="the largest score of each window, divided by its limit"
        )
    return Completed(message=" ".join(finding.lines), name=finding.verdict.capitalize())


if __name__ == "__main__":
    flow_runs.run_once(monitoring)
