"""`fedkd deploy ACTION`: the options of each action, and the module that does it."""

import sys
from collections.abc import Callable

from fedkd.configuration import validate
from fedkd.errors import ConfigError, DeployError
from simulations.run.options import COMMAND_LINE, Deploy
from simulations.system import operating_system, streams


def main(asked: Deploy) -> int:
    """Do one action; gives the exit code. Raises FedkdError."""
    action = ACTIONS.get(asked.action)
    if action is None:
        what = f"there is no action '{asked.action}'"
        mend = validate.one_of(asked.action, ACTIONS) + "   fedkd deploy --help"
        raise ConfigError(what, where=COMMAND_LINE, mend=mend)
    operating_system.check("fedkd deploy", DeployError)
    return action(asked)


def _init(asked: Deploy) -> int:
    from simulations.deploy import init

    if not (asked.address and asked.devices):
        raise ConfigError(
            "deploy init needs --address and --devices",
            where=COMMAND_LINE,
            mend="fedkd deploy init DIR --address fl.example.org --devices edge-1,edge-2,edge-3",
        )
    return init.init(asked)


def _add(asked: Deploy) -> int:
    from simulations.deploy import init

    if not asked.devices:
        raise ConfigError("deploy add needs --devices", where=COMMAND_LINE, mend="--devices edge-4")
    return init.add(asked.folder, asked.devices, asked, asked.memory_mb)


def _renew(asked: Deploy) -> int:
    from simulations.deploy import init

    return init.renew(asked.folder, asked)


def _shards(asked: Deploy) -> int:
    from fedkd.configuration import compose
    from simulations.deploy import demo, plan

    found = plan.load(asked.folder)
    config = compose.resolve([*found.run_words(), *asked.rest]).config
    written = demo.share(found, config, is_public_only=asked.public_only)
    asked.answer({"shards": written})
    if not (asked.json or asked.quiet):
        for row in written:
            print("   ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def _server(asked: Deploy) -> int:
    from simulations.deploy import plan, server

    return server.main(plan.load(asked.folder), _say(asked), asked.host)


def _client(asked: Deploy) -> int:
    from simulations.deploy import client, kit, plan

    folder = asked.folder
    if (folder / kit.FILE).exists() or not plan.exists(folder):
        found = kit.Kit.load(folder)
    else:
        if asked.name is None:
            names = ", ".join(device.name for device in plan.load(folder).devices)
            raise ConfigError("deploy client needs --name", where=COMMAND_LINE, mend=f"its devices are: {names}")
        plan.load(folder).find(asked.name)
        found = plan.load(folder).load_kit(asked.name)
    return client.main(found, asked.data, _say(asked))


def _run(asked: Deploy) -> int:
    from simulations.deploy import plan, submit
    from simulations.run import run_folder, runs

    streams.outlive_terminal()
    found = plan.load(asked.folder)
    if asked.resume:
        wanted, words = run_folder.told_apart(asked.rest)
        summary = submit.resume(found, wanted, asked, words)
    else:
        summary = submit.start(found, asked.rest, asked)
    asked.answer(summary)
    return runs.exit_code(summary)


def _status(asked: Deploy) -> int:
    from simulations.deploy import plan, status

    found = status.look(plan.load(asked.folder))
    asked.answer(found)
    if not asked.json:
        print(status.text(found))
    return 0


def _stop(asked: Deploy) -> int:
    from simulations.deploy import kit, plan, stop

    folder = asked.folder
    if (folder / kit.FILE).exists():
        return stop.device(kit.Kit.load(folder), _say(asked))
    return stop.deployment(plan.load(folder), _say(asked))


def _demo(asked: Deploy) -> int:
    from simulations.deploy import demo
    from simulations.run import runs

    streams.outlive_terminal()
    summary = demo.main(asked.words, asked, _say(asked))
    asked.answer(summary)
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


def _say(asked: Deploy) -> Callable[[str], None]:
    """Lines for people: on stderr with --json, and only warnings with --quiet."""

    def say(text: str) -> None:
        if not asked.quiet or text.startswith("warn"):
            print(text, file=sys.stderr if asked.json else sys.stdout, flush=True)

    return say
