"""``multipart/form-data`` as it comes: part after part, in constant memory.

Strict where it matters: a body that ends before its closing delimiter is an error, so that half
a file is never taken for a whole one; a delimiter is found wherever the pieces happen to be cut.
(werkzeug 3.1's decoder was tried: when a piece ends within the closing ``--``, the CR before the
delimiter comes out as a byte of the file.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from werkzeug.http import parse_options_header

from everfold.errors import EverfoldError, Kind

PIECE: Final = 512 * 1024
_HEADERS_MAX: Final = 16 * 1024
_PREAMBLE_MAX: Final = 64 * 1024
_FIELD_MAX: Final = 64 * 1024
_PARTS_MAX: Final = 100

Read = Callable[[int], bytes]
"""Return up to so many bytes of the body, b"" at its end."""


class Part:
    """One field. Its bytes are to be taken (or not) before the next part is asked for."""

    def __init__(self, form: Form, name: str, filename: str | None) -> None:
        self.name = name
        self.filename = filename
        self._form = form

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they come; INVALID when the body breaks off."""
        return self._form.chunks()

    def text(self) -> str:
        """Return the bytes as text; INVALID when they are none, TOO_LARGE beyond 64 KiB."""
        data = b""
        for chunk in self.chunks():
            data += chunk
            if len(data) > _FIELD_MAX:
                raise EverfoldError(Kind.TOO_LARGE, f"the field {self.name[:80]!r} is too long")
        try:
            text = data.decode()
        except UnicodeError as err:
            raise _malformed(f"the field {self.name[:80]!r} is not text") from err
        if "\0" in text:
            raise _malformed(f"the field {self.name[:80]!r} is not text")
        return text


class Form:
    """The parts of a body."""

    def __init__(self, read: Read, content_type: str) -> None:
        """INVALID unless the type is multipart/form-data with a boundary."""
        kind, options = parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if kind != "multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise EverfoldError(Kind.INVALID, "the body is not multipart/form-data with a boundary")
        self._read = read
        self._delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
        self._buffer = b"\r\n"  # the first delimiter need not be on a line of its own
        self._is_within = True  # of a part (or what stands before the first)

    def __iter__(self) -> Iterator[Part]:
        seen = 0
        for chunk in self.chunks():
            seen += len(chunk)
            if seen > _PREAMBLE_MAX:
                raise _malformed("there is no part")
        for _ in range(_PARTS_MAX):
            if self._is_last():
                self._drain()
                return
            self._is_within = True
            yield self._head()
            for _ in self.chunks():
                pass
        raise EverfoldError(Kind.TOO_LARGE, f"a form has at most {_PARTS_MAX} fields")

    def chunks(self) -> Iterator[bytes]:
        """Yield what comes before the next delimiter, and take that off."""
        keep = len(self._delimiter) - 1
        while self._is_within:
            at = self._buffer.find(self._delimiter)
            if at >= 0:
                chunk, self._buffer = (
                    self._buffer[:at], self._buffer[at + len(self._delimiter) :],
                )  # fmt: skip
                self._is_within = False
            else:
                cut = max(0, len(self._buffer) - keep)
                chunk, self._buffer = self._buffer[:cut], self._buffer[cut:]
                self._more()
            if chunk:
                yield chunk

    def _is_last(self) -> bool:
        """Read the rest of a delimiter's line; tell whether it was the closing one."""
        while len(self._buffer) < 2:
            self._more()
        if self._buffer.startswith(b"--"):
            return True
        padding = self._until(b"\r\n")
        if padding.strip(b" \t"):
            raise _malformed("a delimiter is followed by something")
        return False

    def _head(self) -> Part:
        """Read the headers of a part."""
        self._buffer = b"\r\n" + self._buffer  # headers may be none at all
        for line in self._until(b"\r\n\r\n").split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                return self._part(value)
        raise _malformed("a part without Content-Disposition")

    def _part(self, disposition: bytes) -> Part:
        try:
            kind, options = parse_options_header(disposition.decode().strip())
        except UnicodeError as err:
            raise _malformed("a part's name is not UTF-8") from err
        if kind != "form-data" or "name" not in options:
            raise _malformed("a part without a name")
        return Part(self, options["name"], options.get("filename"))

    def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            if len(self._buffer) > _HEADERS_MAX:
                raise _malformed("the headers of a part are too long")
            self._more()
        found, self._buffer = self._buffer[:at], self._buffer[at + len(end) :]
        return found

    def _more(self) -> None:
        data = self._read(PIECE)
        if not data:
            raise _malformed("it was cut short")
        self._buffer += data

    def _drain(self) -> None:
        """Read what follows the end, so that the connection can be used again."""
        left = _PREAMBLE_MAX
        while left > 0 and (data := self._read(left)):
            left -= len(data)


def _malformed(why: str) -> EverfoldError:
    return EverfoldError(Kind.INVALID, f"the upload cannot be read: {why}")
