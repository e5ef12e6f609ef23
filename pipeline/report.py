"""Write the HTML report of the scores (--page), and the tables that `dvc plots` draws (--plots).

No other stage computes anything from these files. A change of wording or style therefore reruns only this stage and
`register`, which logs the page.
"""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd

from pipeline.evaluation.examples import pictures_of, random_predictions
from pipeline.evaluation.plots import plot_tables
from pipeline.evaluation.report_page import dataset_facts, named_sets, render, weights_of
from pipeline.files import replacing_folder, write_text
from pipeline.params import Params
from pipeline.safe_text import on_texts, text_of_cell
from pipeline.stage import run_main, stage_main


def run(
    params: Params,
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of split"],
    candidates: Annotated[Path, "folder of the candidates' validation scores"],
    histories: Annotated[Path, "folder of the candidates' histories"],
    scores: Annotated[Path, "scores.json of evaluate"],
    slices: Annotated[Path, "CSV file of evaluate"],
    predictions: Annotated[Path, "Parquet file of evaluate"],
    mistakes: Annotated[Path, "Parquet file of evaluate"],
    architecture: Annotated[Path, "JSON file of evaluate"],
    plots: Annotated[Path, "folder to write"],
    page: Annotated[Path, "HTML file to write"],
) -> None:
    """Write the page and the tables."""
    summary = json.loads(scores.read_text())
    curves = {name: pd.read_csv(histories / f"{name}.csv") for name in params.candidates}
    predicted, worst = pd.read_parquet(predictions), named_sets(pd.read_parquet(mistakes))
    threshold = summary["decision"]["threshold"]
    backbone = params.backbones[params.candidates[summary["candidate"]].backbone]
    rendered = render(
        metrics=summary,
        candidates={name: json.loads((candidates / f"{name}.json").read_text()) for name in params.candidates},
        histories=curves,
        predictions=predicted,
        slices=read_slices(slices),
        mistakes={
            name: list(pictures_of(worst[name], datasets)) if name in worst else [] for name in named_sets(predicted)
        },
        samples={
            str(name): list(pictures_of(random_predictions(rows, threshold), datasets))
            for name, rows in predicted.groupby("dataset")
        },
        architecture=json.loads(architecture.read_text()),
        datasets=list(dataset_facts(params, pd.read_parquet(manifest), datasets)),
        weights=weights_of(backbone.architecture),
    )
    with replacing_folder(plots) as folder:
        for name, table in plot_tables(named_sets(predicted)["Test"], threshold, curves).items():
            table.to_csv(folder / f"{name}.csv", index=False)
    write_text(page, rendered)


def read_slices(path: Path) -> pd.DataFrame:
    """Return the table of `slice_table` that evaluate wrote to a CSV file."""
    texts = dict.fromkeys(("set", "kind", "slice"), str)  # a photo may be named by a number, or "NA"
    return on_texts(pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=""), text_of_cell)


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
