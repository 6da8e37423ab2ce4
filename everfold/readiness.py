"""Telling whoever started this process that it does its work now: sd_notify(3) without a library.

systemd's `Type=notify` waits for it, so that what is ordered after a server finds it serving, and
what is ordered after a mount finds its files.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)


def tell() -> None:
    """Say READY=1, if anybody listens ($NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(b"READY=1", address)
    except OSError as err:  # it is ready all the same
        _log.warning("nobody could be told that this is ready: %s", err)
