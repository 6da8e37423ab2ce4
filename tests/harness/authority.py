"""A certificate authority for tests, and the files that servers and clients read."""

from __future__ import annotations

from pathlib import Path

import trustme


class Authority:
    """One authority with its files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def issue(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Write a certificate for these hosts under a name; return (certificate, key)."""
        made = self._ca.issue_cert(*hosts)
        chain, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        fresh = self._folder / f"{name}.new"
        fresh.unlink(missing_ok=True)
        for pem in made.cert_chain_pems:
            pem.write_to_path(str(fresh), append=True)
        made.private_key_pem.write_to_path(str(key))
        fresh.rename(chain)
        return chain, key
