"""Each client's samples and student, and the public set. Written when a run starts, compared when it resumes."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedkd.data.partition import Partition
from fedkd.data.samples import Proxy
from fedkd.errors import CheckpointError
from fedkd.problem import Problem
from fedkd.training import sample_order
from simulations.assemble import Assembly
from simulations.run import run_folder
from simulations.run.run_folder import RunFolder


def keep(folder: RunFolder, assembly: Assembly, student: str) -> None:
    """Write partition.json and the facts in run.json; `student` is the name if all clients have the same.

    Raises CheckpointError if they differ from those the run began with.
    """
    if assembly.partition is not None:
        _keep_partition(folder, assembly, assembly.partition)
    else:
        _keep_devices(folder, assembly)
    problem = assembly.experiment.problem
    facts = {"students": architectures(problem, student), "proxy": public_set(problem.proxy)}
    folder.note(**pairing(assembly, student), task=task(assembly, student))
    before = folder.info()
    before |= {"students": _once(before["students"])} if before.get("students") else {}
    for name, fact in facts.items():
        if before.get(name, fact) != fact:
            raise _changed(folder, "the clients' students are" if name == "students" else "the public set is")
    folder.note(**facts)


def task(assembly: Assembly, student: str) -> dict[str, Any]:
    """The task: data sizes, and the number of learnable entries per architecture."""
    problem, data = assembly.experiment.problem, assembly.dataset
    sizes = {"train": len(data.train), "test": len(data.test)} if assembly.partition is not None else {}
    names = {name: name for name in problem.mixture} or {student: ""}
    return {
        **sizes,
        "classes": problem.classes,
        "shape": list(problem.input_shape),
        "parameters": {name: _num_parameters(problem.alike(key)) for name, key in names.items()},
    }


def _num_parameters(problem: Problem) -> int:
    return sum(entry.numel() for entry in problem.shape.parameters())


def pairing(assembly: Assembly, student: str) -> dict[str, Any]:
    """What all runs of one seed share, whatever their strategy, as SHA-256: first weights and first passes of clients.

    A paired comparison relies on this, on the partition's digest, and on the cohorts in the ledger.
    """
    problem = assembly.experiment.problem
    first = {
        name or student: _sha256(problem.alike(name).initial().weights.values()) for name in ("", *problem.mixture)
    }
    if assembly.partition is None:
        return {"initial_sha256": first}
    sizes = [len(index) for index in assembly.partition.train]
    orders = [sample_order.pass_order(problem.seed, client, 0, size) for client, size in enumerate(sizes)]
    return {"initial_sha256": first, "batches_sha256": _sha256(orders)}


def _sha256(tensors: Iterable[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def architectures(problem: Problem, student: str) -> list[str]:
    """The architecture of each client; one name if all clients have the same."""
    return _once(problem.assigned or (student,))


def _once(names: Sequence[str]) -> list[str]:
    """Older run folders always hold one name per client; 10,000 equal ones filled most of run.json."""
    return list(names) if len(set(names)) > 1 else list(names[:1])


def public_set(proxy: Proxy | None) -> dict[str, Any] | None:
    """The facts about a public set; None if there is none."""
    if proxy is None:
        return None
    return {"name": proxy.name, "size": len(proxy), "labelled": proxy.is_labelled, "checksum": proxy.checksum}


def _keep_devices(folder: RunFolder, assembly: Assembly) -> None:
    """Write partition.json for a run on devices, whose partition the server does not know."""
    schema, classes = run_folder.SCHEMAS["schema"], list(assembly.dataset.labels)
    folder.write_json("partition.json", {"schema": schema, "recipe": {"name": "devices"}, "classes": classes})


def _keep_partition(folder: RunFolder, assembly: Assembly, split: Partition) -> None:
    sha256 = split.digest()
    if folder.info().get("partition_sha256", sha256) != sha256:
        raise _changed(folder, "the partition is")
    counts = split.label_counts(assembly.dataset.train.y.numpy())
    folder.write_json(
        "partition.json",
        {
            "schema": run_folder.SCHEMAS["schema"],
            "recipe": split.recipe,
            "train": [len(part) for part in split.train],
            "test": [len(part) for part in split.test],
            "labels": np.asarray(counts).tolist(),
            "classes": list(assembly.dataset.labels),
            "sha256": sha256,
        },
    )
    folder.note(partition_sha256=sha256)


def _changed(folder: RunFolder, what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} not what this run began with: the data or a library has changed",
        where=str(folder.path),
        mend="restore the data set and the versions in run.json, or start the run again",
    )
