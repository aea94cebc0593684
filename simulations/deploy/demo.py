"""`fedkd deploy demo`: a whole deployment on this machine, from keys to ledger; ends all its processes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fedkd.config import RunConfig
from fedkd.configuration import compose
from simulations.deploy import client, init, plan, processes, server, shards, submit
from simulations.run.options import Deploy, Options
from simulations.system import scratch

DEVICES = "edge-1,edge-2,edge-3"
WORDS = ("data=digits", "strategy=fedgen", "rounds=3", "evaluate.every=3", "engine.deadline=120")

Say = Callable[[str], None]


def main(words: Sequence[str], options: Options, say: Say) -> dict[str, Any]:
    """SuperLink with TLS, three devices with keys, digits split among them, some rounds; the summary of the run.

    The run folder is below `options.runs`; keys, certificates and the devices' memory are deleted.
    """
    with scratch.folder("demo") as temporary, ExitStack() as stack:
        folder = temporary / "demo"
        port = processes.free_port()
        asked = (str(folder), *WORDS, *words)
        found = init.make(Deploy(action="init", words=asked, address="127.0.0.1", port=port, devices=DEVICES))
        say(f"keys and certificates for {len(found.devices)} devices in {folder}")
        share(found)
        say("digits shared out among them")
        stack.enter_context(server.serving(found, say))
        kits = [found.load_kit(device.name) for device in found.devices]
        children = [client.launch(kit, found.kit(kit.name) / "data", say) for kit in kits]
        stack.callback(processes.end_all, children)
        for kit, child in zip(kits, children, strict=True):
            client.joined(kit, found.kit(kit.name) / "data", child, say)
            say(f"{kit.name} has joined")
        return submit.start(found, (), options, options.runs)


def share(
    found: plan.Deployment, config: RunConfig | None = None, *, is_public_only: bool = False
) -> list[dict[str, Any]]:
    """Split the configured data set as a simulation does: a shard for each device, and the public pack for all."""
    config = config or compose.resolve(found.run_words()).config
    folders = [found.kit(device.name) / "data" for device in found.devices]
    shards.write_public(config, [(found.folder / submit.PUBLIC).parent])
    return (shards.write_public if is_public_only else shards.write)(config, folders)
