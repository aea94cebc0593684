"""onnx: for onnxruntime and other readers, without torch. Packages: the extra `export`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from simulations.export import as_pt2
from simulations.export.serving import Served

INPUT, OUTPUT = "images", "logits"


def write(served: Served, facts: Mapping[str, str], place: Path) -> None:
    program = torch.onnx.export(
        as_pt2.trace(served), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    program.save(str(place), external_data=False)
    describe(place, facts)


def open_(place: Path) -> Callable[[Tensor], Tensor]:
    """On one thread, like all other measurements."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])

    def ask(images: Tensor) -> Tensor:
        logits: np.ndarray = session.run([OUTPUT], {INPUT: images.numpy()})[0]
        return torch.from_numpy(logits)

    return ask


def describe(place: Path, facts: Mapping[str, str]) -> None:
    """Replace the metadata of a file by facts, and remove the traces of our source code."""
    model = onnx.load(place)
    strip(model)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model)
    onnx.save(model, place)


def strip(model: Any) -> None:
    """Remove what the tracer recorded: paths and lines on this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def metadata(place: Path) -> Mapping[str, str]:
    try:
        return {entry.key: entry.value for entry in onnx.load(place).metadata_props}
    except (OSError, DecodeError):
        return {}
