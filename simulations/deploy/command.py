"""`fedkd deploy ACTION`: checks the options of each action and calls its module."""

import sys
from collections.abc import Callable

from fedkd.configuration import validate
from fedkd.errors import ConfigError, DeployError
from simulations.run.options import COMMAND_LINE, Deploy
from simulations.system import operating_system, streams


def main(options: Deploy) -> int:
    """Do one action; returns the exit code. Raises FedkdError."""
    action = ACTIONS.get(options.action)
    if action is None:
        mend = validate.one_of(options.action, ACTIONS) + "   fedkd deploy --help"
        raise ConfigError(f"there is no action '{options.action}'", where=COMMAND_LINE, mend=mend)
    operating_system.check("fedkd deploy", DeployError)
    return action(options)


def _init(options: Deploy) -> int:
    from simulations.deploy import init

    if not (options.address and options.devices):
        mend = "fedkd deploy init DIR --address fl.example.org --devices edge-1,edge-2,edge-3"
        raise ConfigError("deploy init needs --address and --devices", where=COMMAND_LINE, mend=mend)
    return init.init(options)


def _add(options: Deploy) -> int:
    from simulations.deploy import init

    if not options.devices:
        raise ConfigError("deploy add needs --devices", where=COMMAND_LINE, mend="--devices edge-4")
    return init.add(options.folder, options.devices, options, options.memory_mb)


def _renew(options: Deploy) -> int:
    from simulations.deploy import init

    return init.renew(options.folder, options)


def _shards(options: Deploy) -> int:
    from fedkd.configuration import compose
    from simulations.deploy import demo, manifest

    deployment = manifest.load(options.folder)
    config = compose.resolve([*deployment.run_overrides(), *options.overrides]).config
    rows = demo.share(deployment, config, is_public_only=options.public_only)
    options.answer({"shards": rows})
    if not (options.json or options.quiet):
        for row in rows:
            print("   ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def _server(options: Deploy) -> int:
    from simulations.deploy import manifest, server

    return server.main(manifest.load(options.folder), _say(options), options.host)


def _client(options: Deploy) -> int:
    from simulations.deploy import client, kit, manifest

    folder = options.folder
    if (folder / kit.FILE).exists() or not manifest.exists(folder):
        return client.main(kit.Kit.load(folder), options.data, _say(options))
    deployment = manifest.load(folder)
    if options.name is None:
        names = ", ".join(device.name for device in deployment.devices)
        raise ConfigError("deploy client needs --name", where=COMMAND_LINE, mend=f"the devices are: {names}")
    device = deployment.load_kit(deployment.find(options.name).name)
    return client.main(device, options.data, _say(options))


def _run(options: Deploy) -> int:
    from simulations.deploy import manifest, submit
    from simulations.run import run_folder, runs

    streams.outlive_terminal()
    deployment = manifest.load(options.folder)
    if options.resume:
        name, overrides = run_folder.split_arguments(options.overrides)
        summary = submit.resume(deployment, name, options, overrides)
    else:
        summary = submit.start(deployment, options.overrides, options)
    options.answer(summary)
    return runs.exit_code(summary)


def _status(options: Deploy) -> int:
    from simulations.deploy import manifest, status

    facts = status.look(manifest.load(options.folder))
    options.answer(facts)
    if not options.json:
        print(status.text(facts))
    return 0


def _stop(options: Deploy) -> int:
    from simulations.deploy import kit, manifest, stop

    folder = options.folder
    if (folder / kit.FILE).exists():
        return stop.supernode(kit.Kit.load(folder), _say(options))
    return stop.all_processes(manifest.load(folder), _say(options))


def _demo(options: Deploy) -> int:
    from simulations.deploy import demo
    from simulations.run import runs

    streams.outlive_terminal()
    summary = demo.main(options.arguments, options, _say(options))
    options.answer(summary)
    return runs.exit_code(summary)


ACTIONS: dict[str, Callable[[Deploy], int]] = {
    "init": _init,
    "add": _add,
    "renew": _renew,
    "shards": _shards,
    "server": _server,
    "client": _client,
    "run": _run,
    "status": _status,
    "stop": _stop,
    "demo": _demo,
}


def _say(options: Deploy) -> Callable[[str], None]:
    """Prints lines for the user: to stderr with --json, and only warnings with --quiet."""

    def say(text: str) -> None:
        if not options.quiet or text.startswith("warn"):
            print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    return say
