"""Imports what every cell needs, once: forked processes inherit it.

Nothing here may run an operation of torch: its threads do not survive a fork.
"""

import importlib
from contextlib import suppress

from fedkd.configuration import plugins

_MODULES = ("simulations.compare.worker", "simulations.run.driver", "simulations.engines.inline")
_LATE = (
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
)  # simulations.run.tensorboard's

for _name in (*_MODULES, *_LATE, *plugins.modules("strategies").values(), *plugins.modules("clients").values()):
    with suppress(Exception):
        importlib.import_module(_name)
