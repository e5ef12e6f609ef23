import json
import os
import subprocess
import sys

import pytest

FLOAT16 = {"floatx": "float16", "epsilon": 0.1}
OTHER_BACKEND = {"backend": "jax", "image_data_format": "channels_first"}
SHOW = """
from pipeline.models.tf import keras
config = keras.config
print(config.backend(), config.floatx(), config.image_data_format(), config.epsilon(), config.max_epochs())
"""


@pytest.mark.parametrize(
    ("place", "settings", "variables"),
    [
        ("HOME", FLOAT16, {}),
        ("KERAS_HOME", OTHER_BACKEND, {}),
        ("HOME", {}, {"KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "1"}),
    ],
    ids=["keras.json", "KERAS_HOME", "KERAS_BACKEND"],
)
def test_no_setting_of_the_user_changes_how_keras_computes(tmp_path, place, settings, variables):
    folder = tmp_path / ".keras"
    folder.mkdir()
    (folder / "keras.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
    environment |= {place: str(folder if place == "KERAS_HOME" else tmp_path), **variables}
    shown = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=False)
    assert shown.stdout.split() == ["tensorflow", "float32", "channels_last", "1e-07", "None"], shown.stderr
