"""Signed images: cursive's verifier is fed by the driver while it writes, Glance checks the signature afterwards."""

from __future__ import annotations

import base64
import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa

from client import MIB, ImageApi, payload
from helpers import DRIVER, files, wait_until
from server import GlanceServer

DATA = payload(5 * MIB + 3)
HASHES = {"SHA-256": hashes.SHA256, "SHA-512": hashes.SHA512}


class Signer:
    """A key with a certificate of its own, put where the server's key manager looks for it."""

    def __init__(self, server: GlanceServer, kind: str) -> None:
        self.kind = kind
        self.key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey
        if kind == "RSA-PSS":
            self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        elif kind == "ECC_SECP384R1":
            self.key = ec.generate_private_key(ec.SECP384R1())
        else:
            self.key = dsa.generate_private_key(key_size=2048)
        self.identifier = str(uuid.uuid4())
        name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "glance end-to-end test")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )
        (server.certificates / f"{self.identifier}.der").write_bytes(
            certificate.public_bytes(serialization.Encoding.DER)
        )

    def properties(self, data: bytes, method: str = "SHA-256") -> dict[str, Any]:
        """Sign data and return the properties that an image with this content has to carry."""
        algorithm = HASHES[method]()
        if isinstance(self.key, rsa.RSAPrivateKey):
            scheme = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.MAX_LENGTH)
            signature = self.key.sign(data, scheme, algorithm)
        elif isinstance(self.key, ec.EllipticCurvePrivateKey):
            signature = self.key.sign(data, ec.ECDSA(algorithm))
        else:
            signature = self.key.sign(data, algorithm)
        return {
            "img_signature": base64.b64encode(signature).decode(),
            "img_signature_hash_method": method,
            "img_signature_key_type": self.kind,
            "img_signature_certificate_uuid": self.identifier,
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlanceServer]:
    with GlanceServer(tmp_path_factory.mktemp("signature"), driver=DRIVER) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: GlanceServer) -> ImageApi:
    return ImageApi(server.url)


@pytest.mark.parametrize("kind", ["RSA-PSS", "ECC_SECP384R1", "DSA"])
@pytest.mark.parametrize("method", list(HASHES))
@pytest.mark.parametrize("chunk", [None, 100_000], ids=["content-length", "chunked"])
def test_good_signature(server: GlanceServer, api: ImageApi, kind: str, method: str, chunk: int | None) -> None:
    image = api.upload(DATA, chunk=chunk, **Signer(server, kind).properties(DATA, method))
    api.check(image, DATA)
    assert "Successfully verified signature for image " + image in server.log()
    assert (server.datadir() / image).read_bytes() == DATA
    assert api.delete(image) == 204
    assert files(server.datadir()) == []


@pytest.mark.parametrize("kind", ["RSA-PSS", "ECC_SECP384R1", "DSA"])
@pytest.mark.parametrize("chunk", [None, 100_000], ids=["content-length", "chunked"])
def test_bad_signature(server: GlanceServer, api: ImageApi, kind: str, chunk: int | None) -> None:
    """One byte is different: the upload is refused, nothing stays, and the right content is accepted afterwards."""
    image = api.create(**Signer(server, kind).properties(DATA))
    position = len(DATA) // 2
    forged = DATA[:position] + bytes([DATA[position] ^ 1]) + DATA[position + 1 :]
    assert api.put(image, forged, chunk=chunk).status == 400
    assert api.status(image) == "queued"
    assert files(server.datadir()) == []
    assert api.put(image, DATA, chunk=chunk).status == 204
    api.check(image, DATA)
    assert api.delete(image) == 204


def test_unknown_certificate(server: GlanceServer, api: ImageApi) -> None:
    properties = Signer(server, "RSA-PSS").properties(DATA)
    image = api.create(**{**properties, "img_signature_certificate_uuid": str(uuid.uuid4())})
    assert api.put(image, DATA).status == 400
    assert api.status(image) == "queued"
    assert files(server.datadir()) == []


def test_signed_import(server: GlanceServer, api: ImageApi) -> None:
    """The verifier is used by the import as well, where the data comes from the staging store."""
    image = api.create(**Signer(server, "RSA-PSS").properties(DATA))
    assert api.put(image, DATA, target="stage").status == 204
    assert api.import_image(image, "glance-direct", stores=["fast"]).status == 202
    api.wait_for(image, "active")
    api.check(image, DATA)
    assert "Successfully verified signature for image " + image in server.log()
    assert api.delete(image) == 204
    wait_until(lambda: files(server.staging_directory) == files(server.datadir()) == [], "nothing is left")


def test_thin_provisioning_with_signature(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Zeroes that are not written have to reach the verifier all the same."""
    root = tmp_path_factory.mktemp("thin")
    with GlanceServer(root, driver=DRIVER, store_options={"filesystem_thin_provisioning": True}) as server:
        api = ImageApi(server.url)
        data = payload(MIB) + bytes(8 * MIB) + payload(1000)
        image = api.upload(data, **Signer(server, "RSA-PSS").properties(data))
        api.check(image, data)
        assert (server.datadir() / image).stat().st_blocks * 512 < 3 * MIB
