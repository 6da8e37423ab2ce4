"""`KernelMount`: a filesystem, mounted; the pieces of this package put together."""

from __future__ import annotations

import os

from everfold.errors import EverfoldError, Kind
from mount.filesystem import Filesystem, KernelCache
from mount.kernel import mounting
from mount.kernel.mounting import MountOptions
from mount.kernel.notify import Notifier
from mount.kernel.session import Session
from mount.statistics import Cost


class KernelMount:
    """One mount of `filesystem`: `mount()`, then `run()`, which ends when it is unmounted."""

    def __init__(
        self, filesystem: Filesystem, mountpoint: str, *, options: MountOptions | None = None
    ) -> None:
        self._fs = filesystem
        self.mountpoint = os.path.abspath(mountpoint)
        self._options = options or MountOptions(read_only=filesystem.is_read_only)
        self._session: Session | None = None
        self._notifier = Notifier()

    @property
    def cache(self) -> KernelCache:
        """What the kernel remembers of this mount; nothing, while it is not mounted."""
        return self._notifier

    def mount(self) -> None:
        """Attach to the mountpoint, taking over a dead mount there.

        From here on programs may ask; they wait until `run` serves them. Raises NOT_FOUND,
        NOT_DIR, FORBIDDEN, BUSY or UNSUPPORTED.
        """
        if self._session is not None:
            raise EverfoldError(Kind.BUSY, "already mounted", self.mountpoint)
        fd = mounting.attach(self.mountpoint, self._options)
        self._session = Session(fd, self._fs)
        self._session.on_ready = lambda: mounting.widen_read_ahead(self.mountpoint)
        self._notifier.open(fd, self._session.introducing)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the kernel and `run` (on another thread) know each other."""
        return self._mounted().is_ready.wait(timeout_s)

    def run(self) -> None:
        """Serve until unmounted, by whomever. The calling thread becomes impatient for good."""
        session = self._mounted()
        try:
            session.run()
        except BaseException:
            # Nobody will answer any more: better no mount than a dead one.
            mounting.detach(self.mountpoint, lazy=True)
            raise
        finally:
            self._session = None
            self._notifier.close()
            session.close()

    def unmount(self, lazy: bool = False) -> None:
        """Unmount, from another thread than `run`'s; not being mounted (any more) is success.

        Raises BUSY while the mount is in use, unless `lazy`.
        """
        if self._session is not None:
            mounting.detach_if_mounted(self.mountpoint, lazy)

    def statistics(self) -> dict[str, Cost]:
        """Return what each kind of request has cost; empty while not mounted."""
        return self._session.statistics() if self._session else {}

    def _mounted(self) -> Session:
        if self._session is None:
            raise EverfoldError(Kind.INVALID, "not mounted", self.mountpoint)
        return self._session
