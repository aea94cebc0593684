"""A node's answers: a device uses its own data, a node of Flower's simulation uses all data."""

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
    kind: str, content: RecordDict, node_config: Mapping[str, Any], app_config: Mapping[str, Any], *, run_id: int
) -> RecordDict:
    """A node's answer to a `query` (which client is it?), or to a job (`work`). `app_config`: the app's run config.

    Errors travel as Failures: Flower would only log the traceback at this node.
    """
    if kind == "query":
        own = device.of(node_config)
        if own is None:
            return RecordDict({"node": _plain_introduction(node_config)})
        return RecordDict({"node": own.introduce(run_config.text(app_config), run_config.name(app_config, run_id))})
    unknown = Job(task="train", client=0, round=0, payload=Payload())  # the engine fills in client and round
    try:
        own = device.of(node_config)
        job = codec.decode_job(content, OWN if own is None else own.reads)
        if own is not None:
            result = own.answer(job, run_config.text(app_config), run_config.name(app_config, run_id))
        else:
            result = _site(str(app_config.get("overrides", ""))).run(job)
    except Malformed as error:  # the text concerns the server's own message
        result = engine.failed(unknown, f"the job cannot be read: {error}", "raised")
    except Exception as error:  # the border: the run must learn of it and continue
        if device.is_one(node_config):  # the worker decides what may leave the device
            raise
        result = engine.failure(unknown, error)
    return codec.encode_result(result)


def _plain_introduction(node_config: Mapping[str, Any]) -> ConfigRecord:
    """The introduction of a node in a simulation."""
    names = ("partition-id", "num-partitions")
    return ConfigRecord({name: node_config[name] for name in names if name in node_config})


@cache
def _site(overrides: str) -> LocalSite:
    """The site of this process, made once: Flower's simulation uses one process for many clients."""
    torch.set_num_threads(1)  # results differ in their last bits between one and two threads
    return assemble.assemble(run_config.resolve(overrides).config).site
