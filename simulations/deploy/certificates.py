"""Keys and certificates of server and devices: standard X.509 and OpenSSH keys.

A deployment has its own certificate authority (CA), which signs the server's certificate; devices trust only this CA.
The server recognises a device by its registered public key.
"""

import base64
import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.errors import DeployError
from simulations.deploy import files, names

CA_DAYS, SERVER_DAYS = 3652, 365
SOON = 30  # days before expiry at which renewal is suggested
_EARLIER = timedelta(days=1)  # certificates are valid from before now: the clocks of devices differ
_LOCAL = ("localhost", "127.0.0.1", "::1")  # names that every server certificate includes, for the server's own machine
_RENEW = "fedkd deploy renew DIR, then restart the server"


@dataclass(frozen=True)
class Signed:
    """A certificate and the key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_file(self) -> files.Content:
        return files.Content(self.certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def key_file(self) -> files.Content:
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return files.Content(self.key.private_bytes(*form), files.SECRET)


@dataclass(frozen=True)
class NodeKey:
    """A device's key, as OpenSSH writes it."""

    private: files.Content
    public: files.Content  # one line
    fingerprint: str  # as `ssh-keygen -l` shows it


@dataclass(frozen=True)
class Problem:
    """Why devices refuse the server, or soon will (a warning)."""

    what: str
    mend: str = ""
    is_warning: bool = False


def authority(now: datetime) -> Signed:
    """A new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd deployment")])
    builder = (
        _begin(name, name, key, key, now, _aware(now) + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    )
    return Signed(builder.sign(key, hashes.SHA256()), key)


def server(ca: Signed, address: str, now: datetime, key: ec.EllipticCurvePrivateKey | None = None) -> Signed:
    """A new certificate of the server at `address`, for `key` or a new one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd superlink")])
    known = dict.fromkeys([address, *_LOCAL])  # no duplicates
    end = min(_aware(now) + timedelta(days=SERVER_DAYS), ca.certificate.not_valid_after_utc)
    builder = (
        _begin(subject, ca.certificate.subject, key, ca.key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in known]), critical=False)
    )
    return Signed(builder.sign(ca.key, hashes.SHA256()), key)


def node_key(comment: str) -> NodeKey:
    """A new key of a device; Flower requires ECDSA."""
    key = ec.generate_private_key(ec.SECP384R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public = files.Content(line + f" {comment}\n".encode())
    return NodeKey(files.Content(key.private_bytes(*form), files.SECRET), public, fingerprint(public.data))


def fingerprint(public: bytes) -> str:
    """The fingerprint of an OpenSSH public key line. Raises DeployError if it is not one."""
    try:
        digest = hashlib.sha256(base64.b64decode(public.split()[1], validate=True)).digest()
    except (IndexError, ValueError) as error:
        raise DeployError("this is not an OpenSSH public key", mend="it begins with ecdsa-sha2-nistp384") from error
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def load(certificate: Path, key: Path) -> Signed:
    """A certificate with its key. Raises DeployError, and FolderError for files that cannot be read."""
    return Signed(_certificate(certificate), load_key(key))


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key without passphrase. Raises DeployError, and FolderError for a file that cannot be read."""
    try:
        key = serialization.load_pem_private_key(files.read(path), password=None)
    except (ValueError, TypeError) as error:
        raise DeployError("this is not a private key without passphrase", where=str(path)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeployError("this is not an elliptic-curve key", where=str(path))
    return key


def check_authority(ca: Signed, now: datetime, where: Path) -> None:
    """Raises DeployError if a CA can no longer sign."""
    mend = "restore the CA's certificate and its key, or make a new deployment"
    if ca.key.public_key() != ca.certificate.public_key():
        raise DeployError("the CA's key is not that of its certificate", where=str(where), mend=mend)
    for problem in _dates(ca.certificate, "the CA", mend, _aware(now)):
        if not problem.is_warning:
            raise DeployError(problem.what, where=str(where), mend=problem.mend)


def days_left(certificate: Path, now: datetime) -> int:
    """Whole days until a certificate ends; negative after that. Raises DeployError or FolderError."""
    return (_certificate(certificate).not_valid_after_utc - _aware(now)) // timedelta(days=1)


def inspect(certificate: Path, ca: Path, address: str, now: datetime, key: Path | None = None) -> list[Problem]:
    """Why devices refuse, or soon will refuse, a server with this certificate and this key.

    Raises DeployError or FolderError for a file that cannot be read.
    """
    leaf, root = _certificate(certificate), _certificate(ca)
    problems = [*_dates(leaf, "the server's certificate", _RENEW, _aware(now))]
    problems += _dates(root, "the CA", "make a new deployment: copy all kits again", _aware(now))
    if not _is_issued_by(leaf, root):
        problems.append(Problem("the server's certificate is not signed by this deployment's CA", _RENEW))
    if not _is_named(leaf, address):
        known = ", ".join(_names(leaf)) or "no name"
        problems.append(Problem(f"the server's certificate is not for {address}, but for {known}", _RENEW))
    if key is not None and load_key(key).public_key() != leaf.public_key():
        problems.append(Problem("the server's key is not that of its certificate", _RENEW))
    return problems


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """The fields of both kinds of certificate. Some clients, such as Python 3.13, require key identifiers."""
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_aware(now) - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    kinds = "digital_signature content_commitment key_encipherment data_encipherment key_agreement"
    kinds += " key_cert_sign crl_sign encipher_only decipher_only"
    return x509.KeyUsage(**{kind: kind in allowed for kind in kinds.split()})


def _alternative(name: str) -> x509.GeneralName:
    address = names.ip(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(files.read(path))
    except ValueError as error:
        raise DeployError("this is not a certificate", where=str(path)) from error


def _dates(certificate: x509.Certificate, what: str, mend: str, now: datetime) -> Iterator[Problem]:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        yield Problem(f"{what} is not valid before {start:%Y-%m-%d %H:%M} UTC", "check this machine's clock")
    elif now > end:
        yield Problem(f"{what} expired on {end:%Y-%m-%d}", mend)
    elif end - now < timedelta(days=SOON):
        yield Problem(f"{what} expires on {end:%Y-%m-%d}, in {(end - now).days} days", mend, is_warning=True)


def _is_issued_by(leaf: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(root)
        return root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    return [*alternatives.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _is_named(leaf: x509.Certificate, address: str) -> bool:
    """Whether clients accept the certificate for `address`: names ignore case, a star matches one label."""
    known = [name.lower() for name in _names(leaf)]
    if names.ip(address) is not None:
        return str(ipaddress.ip_address(address)) in known
    return address.lower() in known or f"*.{address.lower().partition('.')[2]}" in known


def _aware(now: datetime) -> datetime:
    """The time in UTC; a time without a zone is local."""
    return now.astimezone(UTC)
