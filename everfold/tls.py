"""TLS of our servers and clients: what is trusted, what is shown, and what a failure says.

TLS 1.2 is the least that is spoken, nothing goes on with a certificate that does not verify, and
a server that was given a certificate never falls back to plain HTTP. A certificate that was
renewed on disk is shown from the next connection on; one that cannot be read leaves the one
before it in place.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from pathlib import Path
from typing import Final

from everfold.errors import EverfoldError, Kind

HANDSHAKE: Final = 0x16  # the first byte of whoever speaks TLS; no HTTP request begins with it
_LOOK_S: Final = 1.0  # between two looks at the files
_log = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]


class Certificate:
    """The certificate that a server shows, with its key. Threads may share it."""

    def __init__(self, certificate: str | Path, key: str | Path | None = None) -> None:
        """Read both; the key may be in the certificate's file. INVALID when they are of no use."""
        self._files = [str(certificate), str(key)] if key else [str(certificate)]
        self._lock = threading.Lock()  # guards all below
        self._seen = _signature(self._files)
        self._context = _serving(self._files)
        self._look_at = time.monotonic() + _LOOK_S

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to be served with."""
        with self._lock:
            if time.monotonic() >= self._look_at:
                self._look()
            return self._context

    def reload(self) -> None:
        """Let the next connection look at the files, however fresh the last look is.

        Takes no lock: a signal handler may call it.
        """
        self._look_at = 0.0

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_S
        try:
            seen = _signature(self._files)
            if seen == self._seen:
                return
            self._seen = seen  # what is wrong with it is said once
            self._context = _serving(self._files)
        except EverfoldError as err:
            _log.warning("the certificate in use stays: %s", err)
            return
        _log.info("a renewed certificate is shown from now on: %s", self._files[0])


def certificate(cert: str, key: str) -> Certificate | None:
    """Return what TLS_CERT and TLS_KEY say; None: plain HTTP."""
    if key and not cert:
        raise EverfoldError(Kind.INVALID, "a key is of no use without its certificate", "TLS_CERT")
    return Certificate(cert, key or None) if cert else None


def client_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Return how servers are verified: by the system's authorities, or those in `ca_file` alone.

    INVALID when the file holds none.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as err:  # ssl.SSLError is one
        raise EverfoldError(
            Kind.INVALID,
            f"no certificates of authorities can be read: {_reason(err)}",
            ca_file or "",
        ) from err
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def failure(err: OSError) -> str:
    """Return what people are to know of a connection that failed."""
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate does not verify: {err.verify_message} (CA file: --ca-file)"
    if isinstance(err, ssl.SSLError) and err.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "it does not speak TLS (http:// instead of https://?)"
    if isinstance(err, ssl.SSLError):
        return f"TLS failed: {_reason(err)}"
    return str(err)


def _serving(files: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # our clients keep connections; a ticket looks like an early answer
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files[0], files[-1], password=_no_passphrase)
    except (OSError, ValueError) as err:
        raise EverfoldError(
            Kind.INVALID, f"certificate and key cannot be used: {_reason(err)}", files[0]
        ) from err
    return context


def _no_passphrase() -> str:
    """Refuse an encrypted key: nobody is there to be asked."""
    raise ValueError("the key is encrypted")


def _signature(files: list[str]) -> Signature:
    try:
        stats = [os.stat(name) for name in files]
    except OSError as err:
        raise EverfoldError(
            Kind.INVALID, f"cannot be read: {err.strerror}", str(err.filename)
        ) from err
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


def _reason(err: Exception) -> str:
    if isinstance(err, ssl.SSLError):
        return (err.reason or str(err)).replace("_", " ").lower()
    return str(getattr(err, "strerror", "") or err)
