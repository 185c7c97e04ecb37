"""TLS as the fetcher meets it: certificates made here, servers on this machine."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stages.test_fetch_client import fetch
from tests.webserver import WebServer, serving


def certificate(folder: Path, *, days: int, names: list[x509.GeneralName]) -> Path:
    """A self-signed certificate and its key, in one PEM file, valid until `days` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    until = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - timedelta(days=30))
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = folder / f"{days}.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


def context(path: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(path)
    return made


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    return certificate(folder, days=10, names=[x509.DNSName("localhost")])


def trust(monkeypatch: pytest.MonkeyPatch, authorities: ssl.SSLContext) -> None:
    """The client believes these, and no others."""
    monkeypatch.setattr("stages.fetch.http.tls_context", lambda: authorities)


@pytest.fixture
def trusted(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client trusts what is signed by `good`, and nothing else."""
    trust(monkeypatch, ssl.create_default_context(cafile=str(good)))


def reason(server: WebServer, host: str = "localhost") -> str | None:
    (fetched,) = fetch([server.url("/a", host)], timeout_s=10, retries=0)
    return fetched.reason


def test_a_certificate_that_nobody_signed(good: Path) -> None:
    with serving(WebServer(pages={"/a": b"x"}, tls=context(good))) as server:
        assert reason(server) == "tls"
        assert not server.hits


@pytest.mark.usefixtures("trusted")
def test_a_certificate_that_is_trusted_holds_for_its_names_alone(good: Path) -> None:
    with serving(WebServer(pages={"/a": b"x"}, tls=context(good))) as server:
        assert reason(server) is None
        assert reason(server, "127.0.0.1") == "tls"


def test_a_certificate_that_has_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    expired = certificate(tmp_path, days=-1, names=names)
    trust(monkeypatch, ssl.create_default_context(cafile=str(expired)))
    with serving(WebServer(pages={"/a": b"x"}, tls=context(expired))) as server:
        assert reason(server) == "tls"


def test_a_handshake_that_never_ends_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []
        threading.Thread(target=lambda: held.append(listener.accept()[0]), daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        (fetched,) = fetch([url], timeout_s=0.5, retries=0, respect_robots=False)
        assert fetched.reason == "timeout"
        for each in held:
            each.close()
