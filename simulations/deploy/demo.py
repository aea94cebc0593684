"""`fedkd deploy demo`: a whole deployment on this machine, from keys to ledger; ends all processes that it starts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fedkd.config import RunConfig
from fedkd.configuration import compose
from simulations.deploy import client, init, manifest, processes, server, shards, submit
from simulations.run.options import Deploy, Options
from simulations.system import scratch

DEVICES = "edge-1,edge-2,edge-3"
OVERRIDES = ("data=digits", "strategy=fedgen", "rounds=3", "evaluate.every=3", "engine.deadline=120")

Say = Callable[[str], None]


def main(overrides: Sequence[str], options: Options, say: Say) -> dict[str, Any]:
    """SuperLink with TLS, three devices with keys, digits split among them, some rounds; returns the run's summary.

    The run folder is below `options.runs`. Keys, certificates and the devices' memory are deleted at the end.
    """
    with scratch.folder("demo") as temporary, ExitStack() as stack:
        folder = temporary / "demo"
        port = processes.free_port()
        words = (str(folder), *OVERRIDES, *overrides)
        deployment = init.make(Deploy(action="init", arguments=words, address="127.0.0.1", port=port, devices=DEVICES))
        say(f"keys and certificates for {len(deployment.devices)} devices in {folder}")
        share(deployment)
        say("the digits are split among the devices")
        stack.enter_context(server.serving(deployment, say))
        kits = [deployment.load_kit(device.name) for device in deployment.devices]
        children = [client.launch(kit, kit.folder / "data", say) for kit in kits]
        stack.callback(processes.end_all, children)
        for kit, child in zip(kits, children, strict=True):
            client.joined(kit, kit.folder / "data", child, say)
            say(f"{kit.name} has joined")
        return submit.start(deployment, (), options, options.runs)


def share(
    deployment: manifest.Deployment, config: RunConfig | None = None, *, is_public_only: bool = False
) -> list[dict[str, Any]]:
    """Split the configured data set as a simulation does: one shard per device, and the public pack for all."""
    config = config or compose.resolve(deployment.run_overrides()).config
    folders = [deployment.kit(device.name) / "data" for device in deployment.devices]
    shards.write_public(config, [(deployment.folder / submit.PUBLIC).parent])
    return (shards.write_public if is_public_only else shards.write)(config, folders)
