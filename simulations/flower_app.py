"""fedkd as a Flower app: ServerApp and ClientApp.

The ServerApp runs the same rounds as `fedkd run`, so both write the same ledger. Clients read the same configuration
from the app's `overrides`. Nodes of a simulation read all data, and the clients' memory travels with the jobs;
devices keep their own data and memory.
"""

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from simulations.deploy import answer, node, server_run
from simulations.flower import run_config
from simulations.flower.grid_engine import FlowerEngine
from simulations.run import runs
from simulations.run.driver import ExecutionTarget
from simulations.run.options import Options

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the configuration and write a run folder, as `fedkd run` does; on devices if the nodes are devices."""
    given = dict(context.run_config)
    if given.get("devices"):
        server_run.run(grid, given, run_config.text(given), run_config.name(given, context.run_id))
        return
    runs.start(
        run_config.resolve(str(given["overrides"])),
        runs=run_config.folder(str(given["runs"])),
        name=str(given["name"]) or None,
        options=Options(),
        target=ExecutionTarget(connect=lambda site, notify: FlowerEngine(grid, site)),
    )


def _answered(kind: str, message: Message, context: Context) -> Message:
    content = answer.respond(kind, message.content, context.node_config, context.run_config, run_id=context.run_id)
    return Message(content, reply_to=message)


client_app = node.app(_answered)
