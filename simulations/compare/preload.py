"""Imports the modules that every cell needs, once: forked processes inherit them.

No operation of torch may run here: its threads do not survive a fork.
"""

import importlib
from contextlib import suppress

from fedkd.configuration import plugins

_MODULES = ("simulations.compare.cell_process", "simulations.run.driver", "simulations.engines.inline")
# simulations.run.tensorboard imports these late.
_LATE = ("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer")

for _name in (*_MODULES, *_LATE, *plugins.modules("strategies").values(), *plugins.modules("clients").values()):
    with suppress(Exception):
        importlib.import_module(_name)
