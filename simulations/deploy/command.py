"""`fedkd deploy ACTION`: what each action takes, and who does it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedkd import schema
from fedkd.errors import ConfigError, DeployError
from simulations import streams, systems
from simulations.options import Options

COMMAND_LINE = "command line"
_NEEDS_PLACE = "name the deployment's folder, as in `fedkd deploy {action} DIR`"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The words and options of one action."""

    action: str
    words: tuple[str, ...] = ()  # the first one is the folder, but for demo
    address: str | None = None
    port: int | None = None
    devices: str | None = None
    insecure: bool = False
    memory_mb: int | None = None
    data: Path | None = None
    resume: bool = False
    host: str | None = None
    public_only: bool = False

    @property
    def folder(self) -> Path:
        """The deployment, or the kit. Raises ConfigError."""
        if not self.words or "=" in self.words[0]:
            raise ConfigError(
                f"deploy {self.action} needs a folder", where=COMMAND_LINE, mend=_NEEDS_PLACE.format(action=self.action)
            )
        return Path(self.words[0]).expanduser()

    @property
    def rest(self) -> tuple[str, ...]:
        """The words after the folder."""
        return self.words[1:]


def main(request: Request, options: Options) -> int:
    """Do one action; gives the exit code. Raises FedkdError."""
    action = ACTIONS.get(request.action)
    if action is None:
        what = f"there is no action '{request.action}'"
        mend = schema.one_of(request.action, ACTIONS) + "   fedkd deploy --help"
        raise ConfigError(what, where=COMMAND_LINE, mend=mend)
    systems.check("fedkd deploy", DeployError)
    return action(request, options)


def _init(request: Request, options: Options) -> int:
    from simulations.deploy import init
    from simulations.deploy import request as asking

    if request.address is None or request.devices is None:
        raise ConfigError(
            "deploy init needs --address and --devices",
            where=COMMAND_LINE,
            mend="fedkd deploy init DIR --address fl.example.org --devices edge-1,edge-2,edge-3",
        )
    given = asking.Request(
        folder=request.folder,
        words=request.rest,
        address=request.address,
        port=8000 if request.port is None else request.port,
        devices=request.devices,
        insecure=request.insecure,
        memory_mb=request.memory_mb,
    )
    return init.init(given, options)


def _add(request: Request, options: Options) -> int:
    from simulations.deploy import init

    if request.devices is None:
        raise ConfigError("deploy add needs --devices", where=COMMAND_LINE, mend="--devices edge-4")
    return init.add(request.folder, request.devices, options, request.memory_mb)


def _renew(request: Request, options: Options) -> int:
    from simulations.deploy import init

    return init.renew(request.folder, options)


def _shards(request: Request, options: Options) -> int:
    from fedkd import compose
    from simulations.deploy import demo, plan

    found = plan.load(request.folder)
    config = compose.resolve([*found.run_words(), *request.rest]).config
    written = demo.share(found, config, is_public_only=request.public_only)
    options.answer({"shards": written})
    if not (options.json or options.quiet):
        for row in written:
            print("   ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def _server(request: Request, options: Options) -> int:
    from simulations.deploy import plan, server

    return server.main(plan.load(request.folder), _say(options), request.host)


def _client(request: Request, options: Options) -> int:
    from simulations.deploy import client, kit, plan

    folder = request.folder
    if (folder / kit.FILE).exists() or not plan.exists(folder):
        found = kit.Kit.load(folder)
    else:
        if options.name is None:
            names = ", ".join(device.name for device in plan.load(folder).devices)
            raise ConfigError("deploy client needs --name", where=COMMAND_LINE, mend=f"its devices are: {names}")
        plan.load(folder).find(options.name)
        found = plan.load(folder).load_kit(options.name)
    return client.main(found, request.data, _say(options))


def _run(request: Request, options: Options) -> int:
    from simulations import run_folder, runs
    from simulations.deploy import plan, submit

    streams.outlive_terminal()
    found = plan.load(request.folder)
    if request.resume:
        wanted, words = run_folder.told_apart(request.rest)
        summary = submit.resume(found, wanted, options, words)
    else:
        summary = submit.start(found, request.rest, options)
    options.answer(summary)
    return runs.exit_code(summary)


def _status(request: Request, options: Options) -> int:
    from simulations.deploy import plan, status

    found = status.look(plan.load(request.folder))
    options.answer(found)
    if not options.json:
        print(status.text(found))
    return 0


def _stop(request: Request, options: Options) -> int:
    from simulations.deploy import halt, kit, plan

    folder = request.folder
    if (folder / kit.FILE).exists():
        return halt.device(kit.Kit.load(folder), _say(options))
    return halt.deployment(plan.load(folder), _say(options))


def _demo(request: Request, options: Options) -> int:
    from simulations import runs
    from simulations.deploy import demo

    streams.outlive_terminal()
    summary = demo.main(request.words, options, _say(options))
    options.answer(summary)
    return runs.exit_code(summary)


ACTIONS: dict[str, Callable[[Request, Options], int]] = {
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


def _say(options: Options) -> Callable[[str], None]:
    """Lines for people: on stderr where stdout holds an object, nowhere with --quiet."""

    def say(text: str) -> None:
        if not options.quiet or text.startswith("warn"):
            print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    return say
