"""Write the HTML report of the scores (--page), and the tables that `dvc plots` draws (--plots).

No other stage computes anything from these files. A change of wording or style therefore reruns only this stage and
`register`, which logs the page.
"""

import json
from pathlib import Path

import pandas as pd

from pipeline.evaluation.examples import pictures_of, random_predictions
from pipeline.evaluation.model_card import dataset_facts, weights_of
from pipeline.evaluation.plot_tables import plot_tables
from pipeline.evaluation.report_page import ReportInputs, named_sets, render, scored_sets_of
from pipeline.files import replacing_folder, write_text
from pipeline.params import Params, load_params
from pipeline.stage import run_main, stage_parser


def run(
    params: Params,
    *,
    datasets: Path,
    manifest_path: Path,
    candidates_folder: Path,
    histories_folder: Path,
    scores_path: Path,
    slices_path: Path,
    predictions_path: Path,
    mistakes_path: Path,
    architecture_path: Path,
    plots: Path,
    page_path: Path,
) -> None:
    """Write the page and the tables."""
    scores = json.loads(scores_path.read_text())
    histories = {name: pd.read_csv(histories_folder / f"{name}.csv") for name in params.candidates}
    predictions, mistakes = pd.read_parquet(predictions_path), named_sets(pd.read_parquet(mistakes_path))
    threshold = scores["decision"]["threshold"]
    backbone = params.backbones[params.candidates[scores["candidate"]].backbone]
    page = render(
        metrics=scores,
        candidates={name: json.loads((candidates_folder / f"{name}.json").read_text()) for name in params.candidates},
        histories=histories,
        predictions=predictions,
        inputs=ReportInputs(
            slices=read_slices(slices_path),
            mistakes={
                name: list(pictures_of(mistakes[name], datasets)) if name in mistakes else []
                for name in named_sets(predictions)
            },
            samples={
                str(name): list(pictures_of(random_predictions(rows, threshold), datasets))
                for name, rows in predictions.groupby("dataset")
            },
            architecture=json.loads(architecture_path.read_text()),
            datasets=list(dataset_facts(params, pd.read_parquet(manifest_path), datasets)),
            weights=weights_of(backbone.architecture),
        ),
    )
    test = scored_sets_of(predictions)[0]
    with replacing_folder(plots) as folder:
        for name, table in plot_tables(test, threshold, histories).items():
            table.to_csv(folder / f"{name}.csv", index=False)
    write_text(page_path, page)


def read_slices(path: Path) -> pd.DataFrame:
    """Return the table of `slice_table` that evaluate wrote to a CSV file."""
    texts = dict.fromkeys(("set", "kind", "slice"), str)  # a photo may be named by a number, or "NA"
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values="")


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of split")
    parser.add_argument("--candidates", type=Path, required=True, help="folder of the candidates' validation scores")
    parser.add_argument("--histories", type=Path, required=True, help="folder of the candidates' histories")
    parser.add_argument("--scores", type=Path, required=True, help="scores.json of evaluate")
    parser.add_argument("--slices", type=Path, required=True, help="CSV file of evaluate")
    parser.add_argument("--predictions", type=Path, required=True, help="Parquet file of evaluate")
    parser.add_argument("--mistakes", type=Path, required=True, help="Parquet file of evaluate")
    parser.add_argument("--architecture", type=Path, required=True, help="JSON file of evaluate")
    parser.add_argument("--plots", type=Path, required=True, help="folder to write")
    parser.add_argument("--page", type=Path, required=True, help="HTML file to write")
    args = parser.parse_args()
    run(
        load_params(args.params),
        datasets=args.datasets,
        manifest_path=args.manifest,
        candidates_folder=args.candidates,
        histories_folder=args.histories,
        scores_path=args.scores,
        slices_path=args.slices,
        predictions_path=args.predictions,
        mistakes_path=args.mistakes,
        architecture_path=args.architecture,
        plots=args.plots,
        page_path=args.page,
    )


if __name__ == "__main__":
    run_main(main)
