"""int8: an onnx student with weights and activations of eight bits, calibrated on its training samples."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from simulations.export import as_onnx
from simulations.export.serving import Served

SAMPLES = 512  # of the training data, for the ranges of activations
_BATCH = 64


class _Reader(quantization.CalibrationDataReader):
    """Images of the training data, as stored."""

    def __init__(self, images: np.ndarray) -> None:
        self.parts: Iterator[np.ndarray] = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self.parts, None)
        return None if part is None else {as_onnx.INPUT: part}


def write(served: Served, facts: Mapping[str, str], place: Path, whole: Path) -> None:
    """Write the quantised form of the onnx file `whole` to `place`.

    Static, in QDQ form; weights per channel, symmetric. Scaling stays in float: its product does not fit a byte.
    """
    index = served.training(SAMPLES)
    prepared = place.with_suffix(".prepared")
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it recommends the step we have just done
    try:
        shape_inference.quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(place),
            _Reader(served.assembly.site.train.x[index].numpy()),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu", "MaxPool", "GlobalAveragePool", "Add"],
        )
    finally:
        root.setLevel(before)
        prepared.unlink(missing_ok=True)
    as_onnx.describe(place, {**facts, "precision": "int8"})
