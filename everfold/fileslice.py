"""A part of a file, to be sent without being read: `FileSlice`.

Handing a stretch of a file to a socket with sendfile(2) costs a quarter of the processor time
of reading it and sending the bytes (0.4 ms against 1.6 ms for 4 MiB). The slice keeps a
descriptor of its own, so that a sender who was given up long ago never reads another file
that came to bear the same number.
"""

from __future__ import annotations

import os

from everfold.errors import EverfoldError, Kind


class FileSlice:
    """``[offset, offset + size)`` of a file whose bytes there never change.

    `path` is set when the slice is the whole of the file that bears this name.
    """

    __slots__ = ("_fd", "_size", "offset", "path")

    def __init__(self, fd: int, offset: int, size: int, path: str | None = None) -> None:
        self._fd = -1
        self._fd = os.dup(fd)
        self.offset, self._size, self.path = offset, size, path

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        data = bytearray(self._size)
        self.read_into(memoryview(data))
        return bytes(data)

    def fileno(self) -> int:
        """Return the descriptor; good as long as the slice lives."""
        return self._fd

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer`, which is exactly as long as the slice. CORRUPT when bytes are gone."""
        done = 0
        while done < self._size:
            try:
                count = os.preadv(self._fd, [buffer[done:]], self.offset + done)
            except OSError as err:
                raise EverfoldError(Kind.UNAVAILABLE, f"cannot be read: {err}") from err
            if not count:
                raise EverfoldError(Kind.CORRUPT, "bytes of a file are gone")
            done += count

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
