"""Checks whether a SuperLink answers, and whether our certificate authority has signed its certificate."""

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from fedkd.errors import DeployError

SECONDS = 5.0  # for one attempt


class Unfit(DeployError):
    """The two ends cannot connect: only one of them uses TLS, or the certificate is refused."""


def check(host: str, port: int, ca: Path | None, *, seconds: float = SECONDS) -> None:
    """Connect once, with TLS if there is a `ca`. Raises DeployError, which says at which end to mend it."""
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=seconds) as plain:
            if ca is not None:
                with _context(ca).wrap_socket(plain, server_hostname=host):
                    return
            _expect_plaintext(plain, where)
    except ssl.SSLCertVerificationError as error:
        what = f"the certificate of the SuperLink is refused: {error.verify_message}"
        raise Unfit(what, where=where, mend=_mend(error)) from error
    except ssl.SSLError as error:
        mend = "another program has that port, or the SuperLink runs without TLS: use kits of the same deployment"
        raise Unfit("the SuperLink does not speak TLS there", where=where, mend=mend) from error
    except socket.gaierror as error:
        raise DeployError(f"the name is unknown: {error.strerror}", where=where, mend="check the address") from error
    except OSError as error:
        mend = "start it with `fedkd deploy server DIR`, or check address, port and firewall"
        raise DeployError(f"no SuperLink answers: {error.strerror or error}", where=where, mend=mend) from error


class Watch:
    """Checks repeatedly that a SuperLink answers: Flower's own client silently retries forever."""

    def __init__(self, attempt: Callable[[], None], say: Callable[[str], None], every: float = 30.0) -> None:
        self.attempt, self.say, self.every = attempt, say, every
        self._next = time.monotonic() + every
        self._trouble: DeployError | None = None

    def look(self) -> None:
        """Report changes, if a check is due. Raises Unfit after two unfit checks in a row."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.every
        before, self._trouble = self._trouble, None
        try:
            self.attempt()
        except DeployError as error:
            if isinstance(error, Unfit) and isinstance(before, Unfit):  # once may be a server that is shutting down
                raise
            self._trouble = error
        if self._trouble is not None and before is None:
            self.say(f"warn   {self._trouble.what}; retrying every {self.every:g} s")
        if self._trouble is None and before is not None:
            self.say("note   the SuperLink answers again")


def _expect_plaintext(plain: socket.socket, where: str) -> None:
    """A port with TLS answers plaintext with an alert or by hanging up; Flower's own client would retry forever."""
    plain.sendall(b"GET / HTTP/1.1\r\nHost: fedkd\r\nConnection: close\r\n\r\n")
    if not plain.recv(16).startswith(b"HTTP/"):
        mend = "use a kit that was made with TLS (without --insecure)"
        raise Unfit("the SuperLink speaks TLS there, this end does not", where=where, mend=mend)


def _context(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        mend = "copy ca.crt of the deployment again"
        raise DeployError(f"the CA's certificate cannot be read: {error}", where=str(ca), mend=mend) from error


def _mend(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message:
        return "on the server: fedkd deploy renew DIR, then restart the server; also check this machine's clock"
    if "not yet valid" in error.verify_message:
        return "check this machine's clock"
    if "mismatch" in error.verify_message or "doesn't match" in error.verify_message:
        return "use the address in the certificate, or renew it with --address"
    return "ca.crt on this machine is not the deployment's: copy the kit again"
