"""The formats of exported students: how to write a file, open it, and read its metadata."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor

from fedkd.errors import ConfigError, DataError
from simulations.export.serving import Served

Ask = Callable[[Tensor], Tensor]  # images (N, channels, height, width) uint8 -> logits (N, classes), without gradient


@dataclass(frozen=True)
class Format:
    name: str  # and suffix
    tolerance: float  # largest difference of a logit from the run's student, as a share of `checks.size` of its logits
    write: Callable[[Served, Mapping[str, str], Path], None]
    open: Callable[[Path], Ask]
    metadata: Callable[[Path], Mapping[str, str]]  # empty if the file is not ours


# Tolerance of each format; a larger one for onnx, whose kernels sum in another order.
FORMATS = {"safetensors": 1e-6, "pt2": 1e-5, "onnx": 1e-4}


def choose(name: str, *, int8: bool) -> Format:
    """The format of a name. Raises ConfigError for an unknown name, DataError if its packages are missing."""
    if name not in FORMATS:
        raise ConfigError(f"there is no format '{name}'", where="--format", mend=f"choose one of: {', '.join(FORMATS)}")
    if int8 and name != "onnx":
        raise ConfigError(
            f"--int8 is for onnx only, not for {name}", where="command line", mend="say --format onnx --int8"
        )
    for package in ("onnx", "onnxscript", "onnxruntime") if name == "onnx" else ():
        require(package)
    module = importlib.import_module(f"simulations.export.as_{name}")  # torch.onnx and onnxruntime load late
    return Format(name, FORMATS[name], module.write, module.open_, module.metadata)


def require(package: str) -> ModuleType:
    """A package of the extra `export`. Raises DataError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise DataError(
            f"--format onnx needs the package {package}, which is not installed",
            mend="pip install 'fedkd[export]'   the formats safetensors and pt2 need no extra package",
        ) from None
