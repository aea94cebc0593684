"""The way to a SuperLink: what is wrong is said in the words of the end that can mend it."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedkd.errors import DeployError
from simulations.deploy import certificates, tls_check

Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(answer: Answer) -> Iterator[int]:
    """A server on a free port of loopback that answers each connection in its own way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            over.set()
            thread.join()


def http(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")


def hang_up(connection: socket.socket) -> None:
    connection.recv(100)


def test_nobody_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DeployError, match=r"(?s)no SuperLink answers.*fedkd deploy server") as caught:
        tls_check.check("127.0.0.1", port, None)
    assert caught.value.code == 7


def test_plaintext_to_plaintext_is_well() -> None:
    with listening(http) as port:
        tls_check.check("127.0.0.1", port, None)


def test_plaintext_to_a_port_with_tls_is_refused_and_not_retried_for_ever() -> None:
    with listening(hang_up) as port, pytest.raises(DeployError, match="speaks TLS there, this end does not"):
        tls_check.check("127.0.0.1", port, None)


def test_tls_to_a_plaintext_port_is_refused(ca: Path) -> None:
    with listening(http) as port, pytest.raises(DeployError, match="does not speak TLS"):
        tls_check.check("127.0.0.1", port, ca)


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(DeployError, match="the name is unknown"):
        tls_check.check("no-such-host.invalid", 8000, None)


def test_a_ca_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "ca.crt"
    broken.write_text("no certificate")
    with listening(hang_up) as port, pytest.raises(DeployError, match="the CA's certificate cannot be read"):
        tls_check.check("127.0.0.1", port, broken)


@pytest.mark.parametrize(
    ("message", "mend"),
    [
        ("certificate has expired", "deploy renew"),
        ("certificate is not yet valid", "clock"),
        ("IP address mismatch, certificate is not valid for '10.0.0.1'", "--address"),
        ("self-signed certificate in certificate chain", "copy the kit again"),
    ],
)
def test_each_refusal_says_how_to_mend_it(message: str, mend: str) -> None:
    error = ssl.SSLCertVerificationError(message)
    error.verify_message = message
    assert mend in tls_check._mend(error)


def test_a_device_says_once_that_no_superlink_answers_and_once_that_one_does_again() -> None:
    told: list[str] = []
    answers: list[DeployError | None] = [None, DeployError("no SuperLink answers"), DeployError("still none"), None]

    def attempt() -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    watch = tls_check.Watch(attempt, told.append, every=0.0)
    for _ in range(4):
        watch.look()
    assert told == ["warn   no SuperLink answers; retrying every 0 s", "note   the SuperLink answers again"]


def test_a_plaintext_device_does_not_wait_for_ever_for_a_server_that_has_turned_to_tls() -> None:
    told: list[str] = []
    with listening(hang_up) as port:
        watch = tls_check.Watch(lambda: tls_check.check("127.0.0.1", port, None), told.append, every=0.0)
        watch.look()
        with pytest.raises(DeployError, match="speaks TLS there, this end does not"):
            watch.look()
    assert told == ["warn   the SuperLink speaks TLS there, this end does not; retrying every 0 s"]


def test_a_device_with_tls_does_not_wait_for_ever_for_a_plaintext_server(ca: Path) -> None:
    with listening(http) as port:
        watch = tls_check.Watch(lambda: tls_check.check("127.0.0.1", port, ca), lambda text: None, every=0.0)
        watch.look()
        with pytest.raises(DeployError, match="does not speak TLS there"):
            watch.look()


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """Any certificate: the server here never shows one."""
    source = ssl.get_default_verify_paths().cafile
    if source is None or not Path(source).exists():
        import certifi  # comes with flwr's HTTP client

        source = certifi.where()
    copy = tmp_path / "ca.crt"
    copy.write_bytes(Path(source).read_bytes())
    return copy


# --- certificates of the deployment itself ---------------------------------------------------------------------------


class Authority:
    """A deployment's own CA, and servers with certificates that it has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.now(UTC)
        self.signed = certificates.authority(self.now)
        self.ca = self._write("ca.crt", self.signed.certificate_file.data)

    def server(self, address: str, at: datetime | None = None) -> ssl.SSLContext:
        made = certificates.server(self.signed, address, at or self.now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            self._write("server.crt", made.certificate_file.data), self._write("server.key", made.key_file.data)
        )
        return context

    def _write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def shaking_hands(context: ssl.SSLContext) -> Answer:
    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as safe:
            safe.recv(1)

    return answer


def test_the_deployments_own_server_is_taken(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    with listening(shaking_hands(ours.server("127.0.0.1"))) as port:
        tls_check.check("127.0.0.1", port, ours.ca)


def test_an_expired_certificate_names_the_end_that_can_mend_it(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    old = ours.server("127.0.0.1", ours.now - timedelta(days=400))
    with listening(shaking_hands(old)) as port, pytest.raises(DeployError, match="expired") as caught:
        tls_check.check("127.0.0.1", port, ours.ca)
    assert "on the server: fedkd deploy renew" in str(caught.value)


def test_a_server_of_another_deployment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    ours, other = Authority(tmp_path), Authority(tmp_path / "other")
    with listening(shaking_hands(other.server("127.0.0.1"))) as port, pytest.raises(DeployError) as caught:
        tls_check.check("127.0.0.1", port, ours.ca)
    assert "copy the kit again" in str(caught.value)
