"""Train the best candidate again without one source after another, and score it on the source left out.

A source is a surface of a data set trained on, or the whole data set if it has none. Writes --out: the scores of each
source, and why others have none; empty unless params set `evaluate.leave_one_source_out`.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd

from pipeline.data.group_split import EXCLUDED
from pipeline.data.images import LabelledImages
from pipeline.data.training_images import TRAINING_SIDES
from pipeline.errors import TooFewImagesError
from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.evaluation.candidate_choice import best_candidate
from pipeline.evaluation.unseen_sources import sources_of, too_few
from pipeline.files import name_by_hash, write_json
from pipeline.params import Params
from pipeline.stage import run_main, stage_main
from pipeline.training.checkpoints import TrainingHistory, checkpoint_folder

if TYPE_CHECKING:
    from pipeline.models.classifier import Classifier

log = logging.getLogger(__name__)


def scores_by_source(
    params: Params, name: str, manifest: pd.DataFrame, datasets: Path, features: Path, unfinished: Path
) -> dict[str, Any]:
    """Return the "scores" of candidate `name` on each source left out, and "not_measured": source -> why it has none.

    A source is scored on all of its images; none of their groups is trained or validated on. What is computed of an
    image to train on it is kept in `unfinished` for all trainings, and a source that is done is not trained again.
    `features` is the folder of the candidate's backbone. Only too few images are a reason: any other error is raised,
    because the gate lets pass what was not measured.
    """
    used = manifest[manifest["split"] != EXCLUDED].sort_values(["dataset", "row"])
    own = used[used["dataset"].isin(params.split.train_on)]
    sides = [LabelledImages(used[used["split"] == side], datasets) for side in TRAINING_SIDES]
    result: dict[str, Any] = {"scores": {}, "not_measured": {}}
    sources = own.groupby(sources_of(own))
    for number, (source, rows) in enumerate(sources, start=1):
        finished = unfinished / name_by_hash(f"{source} {params.decide}") / "scores.json"
        left_out = LabelledImages(rows, datasets)
        try:
            if reason := too_few(left_out.labels.sum(), (~left_out.labels).sum(), rows["group"].nunique()):
                raise TooFewImagesError(reason)
            if not finished.exists():
                log.info("Source %d of %d, %s, is left out: training on the others", number, len(sources), source)
                others = [side.part(~side.rows["group"].isin(rows["group"]).to_numpy()) for side in sides]
                classifier = trained_on(params, name, others, features, unfinished, finished.parent)
                write_json(finished, scores_on(left_out, classifier))
            result["scores"][source] = scores = json.loads(finished.read_text())
            log.info("%s, not trained on: AUROC %.3f on %d images", source, scores["auroc"], scores["n"])
        except TooFewImagesError as error:
            result["not_measured"][source] = str(error)
            log.warning("%s is not left out: %s", source, error)
    return result


def trained_on(
    params: Params, name: str, sides: Sequence[LabelledImages], features: Path, unfinished: Path, folder: Path
) -> "Classifier":
    """Return candidate `name`, trained on the first images and validated on the second.

    A killed training is resumed from `folder`. Raises TooFewImagesError if a label is missing on a side.
    """
    from pipeline.training.candidate import train_candidate  # loads TensorFlow, which takes seconds

    train, validation = sides
    for side, part in zip(TRAINING_SIDES, sides, strict=True):
        if part.labels.all() or not part.labels.any():
            raise TooFewImagesError(f"on the {side} side, the other sources lack cracked or intact images")
    history = TrainingHistory(folder / "history.jsonl", lambda step, values: None)
    return train_candidate(params, name, train, validation, features, unfinished, history)[0]


def scores_on(images: LabelledImages, classifier: "Classifier") -> dict[str, Any]:
    """Return the scores of a classifier on images, with intervals, as `scores_with_intervals`."""
    probabilities = classifier.probabilities(images, progress="scoring")
    return scores_with_intervals(images.labels, probabilities, images.rows["group"].to_numpy(), classifier.decision)


def run(
    params: Params,
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of split"],
    features: Annotated[Path, "folder with a folder per backbone"],
    candidates: Annotated[Path, "folder of the candidates' validation scores"],
    checkpoints: Annotated[Path, "folder for unfinished work"],
    out: Annotated[Path, "JSON file to write"],
) -> None:
    """Write the scores of each source, if params ask for them."""
    result: dict[str, Any] = {"scores": {}, "not_measured": {}}
    if params.evaluate.leave_one_source_out:
        best = best_candidate(candidates, params.candidates)
        unfinished = checkpoint_folder(checkpoints, manifest, params, best)
        known = features / params.candidates[best].backbone
        result = scores_by_source(params, best, pd.read_parquet(manifest), datasets, known, unfinished)
    write_json(out, result)
    shutil.rmtree(checkpoints, ignore_errors=True)


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
