"""Record the repro in MLflow and register its best model, as a new version with alias `challenger`.

Training curves that could not be logged during training are completed from files. Registering the same model again
creates no second version. Inside `dvc exp run`, nothing is registered and no alias moves. Writes --out: name, version,
run_id (both null in an experiment), and where MLflow has the report.
"""

import json
import logging
from dataclasses import fields
from pathlib import Path

from pipeline.files import write_json
from pipeline.params import Params, load_params
from pipeline.project import in_experiment
from pipeline.registry import runs, tracking
from pipeline.registry.mlflow_runs import (
    Results,
    complete_candidates,
    complete_parent,
    tag_sources,
    version_tags,
)
from pipeline.registry.registration import register
from pipeline.registry.store_errors import explained
from pipeline.registry.versions import CHALLENGER
from pipeline.stage import run_main, stage_parser

log = logging.getLogger(__name__)


def run(params: Params, results: Results, out: Path) -> None:
    """Record the repro and register the best model.

    Raises CracksError if the tracking store cannot be used as it is, UnavailableError if the tracking server failed;
    the next run continues from what is recorded.
    """
    name = params.register_as.name
    if in_experiment():
        log.info("This is an experiment: nothing is registered. `dvc exp apply`, then `make run`, registers it.")
        write_json(out, {"name": name, "version": None, "run_id": None})
        return
    client, experiment_id = tracking.connect()
    scores = json.loads(results.scores.read_text())
    best = scores["candidate"]
    advice = "Nothing is lost: once it works again, run `dvc repro`; finished stages are not repeated."
    with explained(advice):
        parent_id = runs.parent_run(client, experiment_id, params, results.manifest)
        with runs.ending(client, parent_id):
            run_ids = complete_candidates(client, experiment_id, parent_id, params, results)
            complete_parent(client, parent_id, params, results, scores)
            tags = version_tags(params, results, scores)
            version = register(client, results.models / best, results, run_ids[best], name, tags)
            tag_sources(client, version, scores)
            client.set_registered_model_alias(name, CHALLENGER, version.version)
    places = {"run_id": version.run_id, "parent_id": parent_id, "experiment_id": experiment_id}
    write_json(out, {"name": name, "version": str(version.version), **places})
    log.info("%s version %s has alias %s", name, version.version, CHALLENGER)


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    for result in fields(Results):
        flag = f"--{result.name.replace('_', '-')}"
        parser.add_argument(flag, type=Path, required=True, help=result.metadata["help"])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    paths = vars(parser.parse_args())
    params, out = load_params(paths.pop("params")), paths.pop("out")
    run(params, Results(**paths), out)


if __name__ == "__main__":
    run_main(main)
