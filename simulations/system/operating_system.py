"""What this operating system lacks, and what fedkd cannot do there. See README.md."""

import importlib.util
import platform

from fedkd.errors import FedkdError

_NEEDED = ("fcntl", "resource", "pwd")  # modules of Python that only Unix has
WITHOUT = "`fedkd deploy` and engine=ray need Linux or macOS"
MEND = "use WSL 2, which is Linux; simulations and comparisons run here with engine=inline"


def missing() -> str:
    """What is missing for devices and Ray, as text; empty if nothing is."""
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"{platform.system()} has no {', '.join(absent)}" if absent else ""


def check(what: str, kind: type[FedkdError]) -> None:
    """Raises `kind` if this system cannot do `what`."""
    if why := missing():
        raise kind(f"{what} needs Linux or macOS: {why}", mend=MEND)
