import numpy as np
import pandas as pd

from pipeline.data.training_images import images_of_side, training_rows
from pipeline.training.features import features_file, features_of, rows_file


def test_features_are_those_of_the_images_over_several_data_sets(two_datasets, tmp_path):
    manifest = pd.read_parquet(two_datasets.manifest)
    for name, sides in training_rows(manifest).items():
        first, rows = {"ours": 0, "theirs": 1000}[name], sides.rows
        np.save(features_file(tmp_path, name), first + rows[:, None].astype(np.float32))
        np.save(rows_file(tmp_path, name), rows)
    side = images_of_side(manifest, "validation", two_datasets.datasets)
    np.testing.assert_array_equal(features_of(side.rows, tmp_path), [[4], [5], [14], [15], [1004], [1005]])
