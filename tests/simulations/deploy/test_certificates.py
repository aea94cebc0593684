"""Keys and certificates, judged by those who will judge them: Python's TLS, OpenSSH, openssl and Flower."""

import os
import shutil
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st

from fedkd.errors import DeployError, FolderError
from simulations.deploy import certificates, files

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
HOST = "fl.example.org"


@pytest.fixture(scope="module")
def ca() -> certificates.Signed:
    return certificates.authority(NOW)


@pytest.fixture
def place(tmp_path: Path, ca: certificates.Signed) -> Callable[..., Path]:
    """Writes a CA and a server signed by it; gives the folder."""

    def make(address: str = HOST, now: datetime = NOW, by: certificates.Signed = ca) -> Path:
        made = certificates.server(by, address, now)
        contents = {"ca.crt": ca.certificate_file, "server.crt": made.certificate_file, "server.key": made.key_file}
        for name, content in contents.items():
            (tmp_path / name).unlink(missing_ok=True)
            files.create(tmp_path / name, content)
        return tmp_path

    return make


def shake(folder: Path, host: str) -> None:
    """A TLS handshake in memory between a server with this certificate and a client that trusts this CA alone."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    asking = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by itself
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up, server_hostname=host)
    server = serving.wrap_bio(up, down, server_side=True)
    done = set()
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (HOST, HOST),
        (HOST, "FL.Example.org"),
        (HOST, "localhost"),
        (HOST, "127.0.0.1"),
        (HOST, "::1"),
        ("192.168.1.10", "192.168.1.10"),
        ("2001:db8::1", "2001:db8:0::1"),
        ("localhost", "localhost"),
    ],
)
def test_the_right_name_is_accepted(place, address, host):
    shake(place(address), host)


@pytest.mark.parametrize("host", ["other.example.org", "192.168.1.11", "example.org", "a.fl.example.org"])
def test_a_wrong_name_is_refused(place, host):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        shake(place(HOST), host)


def test_a_wrong_ca_is_refused(place):
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake(place(by=certificates.authority(NOW)), HOST)


def test_an_expired_certificate_is_refused(place):
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(place(now=NOW - 366 * DAY), HOST)


def test_a_certificate_of_tomorrow_is_refused_and_one_made_by_a_fast_clock_is_not(place):
    shake(place(now=NOW + 0.9 * DAY), HOST)
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake(place(now=NOW + 1.1 * DAY), HOST)


def test_a_server_cannot_sign_for_others(place, ca):
    pretender = certificates.server(ca, HOST, NOW)
    folder = place(by=pretender)
    chain = (folder / "server.crt").read_bytes() + pretender.certificate_file.data
    (folder / "server.crt").write_bytes(chain)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
        shake(folder, HOST)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_agrees(place):
    folder = place()
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", HOST]
    done = subprocess.run(
        [*command, "-CAfile", "ca.crt", "server.crt"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "server.crt: OK", done.stderr


def whats(folder: Path, address: str = HOST, now: datetime = NOW, key: str = "server.key") -> list[tuple[str, bool]]:
    found = certificates.inspect(folder / "server.crt", folder / "ca.crt", address, now, folder / key)
    return [(problem.what, problem.is_warning) for problem in found]


def test_a_fresh_certificate_has_no_problems(place):
    folder = place()
    assert whats(folder) == []
    assert whats(folder, "LOCALHOST") == []
    assert whats(folder, "::1") == []
    assert certificates.days_left(folder / "server.crt", NOW) in (364, 365)  # seconds are cut off


def test_each_problem_is_named(place):
    folder = place()
    end = NOW + 365 * DAY
    day = f"{end:%Y-%m-%d}"
    assert whats(folder, now=end - 29.5 * DAY) == [(f"the server's certificate expires on {day}, in 29 days", True)]
    assert whats(folder, now=end - 31 * DAY) == []
    assert whats(folder, now=end + DAY) == [(f"the server's certificate expired on {day}", False)]
    assert certificates.days_left(folder / "server.crt", end + 2 * DAY) in (-2, -3)
    before = [what for what, _ in whats(folder, now=NOW - 3 * DAY)]
    assert len(before) == 2
    assert before[0].startswith("the server's certificate is not valid before")
    assert before[1].startswith("the CA is not valid before")
    names = "fl.example.org, localhost, 127.0.0.1, ::1"
    assert whats(folder, "new.org") == [(f"the server's certificate is not for new.org, but for {names}", False)]
    assert [what for what, _ in whats(folder, "10.0.0.7")] == [
        f"the server's certificate is not for 10.0.0.7, but for {names}"
    ]


def test_a_certificate_of_another_ca_and_a_key_of_another_certificate_are_named(place):
    folder = place(by=certificates.authority(NOW))
    files.create(folder / "other.key", certificates.authority(NOW).key_file)
    assert whats(folder, key="other.key") == [
        ("the server's certificate is not signed by this deployment's CA", False),
        ("the server's key is not that of its certificate", False),
    ]


def test_a_server_that_signed_another_is_no_ca(place, ca):
    pretender = certificates.server(ca, HOST, NOW)
    folder = place(by=pretender)
    (folder / "ca.crt").write_bytes(pretender.certificate_file.data)
    assert whats(folder) == [("the server's certificate is not signed by this deployment's CA", False)]


@pytest.mark.parametrize("name", ["server.crt", "ca.crt", "server.key"])
def test_files_that_are_no_certificates_are_errors_with_their_place(place, name):
    folder = place()
    (folder / name).write_text("nonsense")
    with pytest.raises(DeployError, match=name):
        whats(folder)
    (folder / name).unlink()
    with pytest.raises(FolderError, match=name):
        whats(folder)


def test_a_server_never_outlives_its_ca():
    ca = certificates.authority(NOW - 3500 * DAY)
    made = certificates.server(ca, HOST, NOW)
    assert made.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc


def test_a_local_time_is_understood(place):
    folder = place(now=NOW.astimezone().replace(tzinfo=None))
    assert whats(folder, now=datetime.now()) == []
    shake(folder, HOST)


@given(st.text(st.sampled_from("abcxyz0189-"), min_size=1, max_size=63))
def test_fingerprints_of_any_device_are_those_of_flower(name):
    made = certificates.node_key(name)
    key = load_ssh_private_key(made.private.data, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert certificates.fingerprint(made.public.data) == made.fingerprint
    assert made.public.data.endswith(f" {name}\n".encode())


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_openssh_reads_both_keys_and_gives_our_fingerprint(tmp_path):
    made = certificates.node_key("edge-1")
    files.create(tmp_path / "node_key", made.private)
    files.create(tmp_path / "node_key.pub", made.public)
    for name in ("node_key", "node_key.pub"):
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", name], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.split()[:3] == [
            "384",
            made.fingerprint,
            "edge-1" if name.endswith("pub") else done.stdout.split()[2],
        ]
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", "node_key"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert public.split()[:2] == made.public.data.split()[:2]


def test_flower_takes_the_private_key(tmp_path):
    made = certificates.node_key("edge-1")
    files.create(tmp_path / "node_key", made.private)
    code = (
        "import argparse, importlib, sys\ncli = importlib.import_module('flwr.supernode.cli.flower_supernode')\n"
        "args = argparse.Namespace(auth_supernode_private_key=sys.argv[1], auth_supernode_public_key=None)\n"
        "private, public = cli._try_setup_client_authentication(args)\n"
        "from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve\nassert uses_nist_ec_curve(public)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "node_key")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_public_key_is_an_error():
    for text in (b"", b"ecdsa", b"ecdsa-sha2-nistp384 !!!"):
        with pytest.raises(DeployError):
            certificates.fingerprint(text)


def test_a_secret_file_is_never_readable_by_others(tmp_path, monkeypatch):
    modes = []
    real = os.fdopen

    def watch(handle, *rest, **more):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return real(handle, *rest, **more)

    monkeypatch.setattr(os, "fdopen", watch)
    before = os.umask(0)
    try:
        files.create(tmp_path / "a.key", certificates.authority(NOW).key_file)
        files.replace(tmp_path / "a.key", certificates.authority(NOW).key_file)
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "a.key").write_text("mine")
    with pytest.raises(FolderError, match="exists"):
        files.create(tmp_path / "a.key", certificates.authority(NOW).key_file)
    assert (tmp_path / "a.key").read_text() == "mine"
