"""The answers of a node: a device uses its own data, a node of Flower's simulation all data."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict

from fedkd import engine
from fedkd.engine import Job
from fedkd.payload import Payload
from fedkd.training.site import LocalSite
from simulations import assemble
from simulations.deploy import device
from simulations.flower import codec, run_config
from simulations.flower.codec import Malformed
from simulations.flower.message_limits import OWN


def respond(
    kind: str, content: RecordDict, node_config: Mapping[str, Any], given: Mapping[str, Any], *, run_id: int
) -> RecordDict:
    """A node's answer to a `query` (which client it is), or to a job (`work`). `given` is the app's run config.

    Errors travel as Failures: Flower would only log the traceback at this node.
    """
    if kind == "query":
        found = device.of(node_config)
        if found is None:
            return RecordDict({"node": _plain_introduction(node_config)})
        return RecordDict({"node": found.introduce(run_config.text(given), run_config.name(given, run_id))})
    unknown = Job(task="train", client=0, round=0, payload=Payload())  # the engine knows the job
    try:
        found = device.of(node_config)
        job = codec.decode_job(content, OWN if found is None else found.reads)
        if found is not None:
            result = found.answer(job, run_config.text(given), run_config.name(given, run_id))
        else:
            result = _site(str(given.get("overrides", ""))).run(job)
    except Malformed as error:  # the text concerns the server's own message
        result = engine.failed(unknown, f"the job cannot be read: {error}", "raised")
    except Exception as error:  # the border: the run must learn of it and go on
        if device.is_one(node_config):  # the device's worker decides what may leave
            raise
        result = engine.failure(unknown, error)
    return codec.encode_result(result)


def _plain_introduction(node_config: Mapping[str, Any]) -> ConfigRecord:
    """The introduction of a node in a simulation."""
    said = ConfigRecord()
    for name in ("partition-id", "num-partitions"):
        if name in node_config:
            said[name] = node_config[name]
    return said


@cache
def _site(overrides: str) -> LocalSite:
    """The site of this process, made once: Flower's simulation uses a process for many clients."""
    torch.set_num_threads(1)  # bits differ between one and two threads
    return assemble.assemble(run_config.resolve(overrides).config).site
