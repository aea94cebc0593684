"""What this operating system lacks of what Linux and macOS have, and what fedkd then does without. See README.md."""

import importlib.util
import platform

from fedkd.errors import FedkdError

_NEEDED = ("fcntl", "resource", "pwd")  # modules of Python that only Unix has
WITHOUT = "`fedkd deploy` and engine=ray need Linux or macOS"
MEND = "use WSL 2, which is Linux; simulations and comparisons run here with engine=inline"


def missing() -> str:
    """What is missing for devices and Ray, in words; empty where nothing is."""
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"{platform.system()} has no {', '.join(lacking)}" if lacking else ""


def check(what: str, kind: type[FedkdError]) -> None:
    """Raises an error of a kind where this system cannot do something."""
    if why := missing():
        raise kind(f"{what} needs Linux or macOS: {why}", mend=MEND)
