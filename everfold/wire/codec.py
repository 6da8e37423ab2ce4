"""The table of hot calls, and records to bytes and back."""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar

import msgspec

from everfold.errors import EverfoldError, Kind
from everfold.model import Record, SpaceUsage
from everfold.wire import calls, nodes

MSGPACK: Final = "application/vnd.everfold+msgpack"
FRAMES: Final = "application/vnd.everfold.frames"
REQUEST_ID: Final = "X-Request-Id"

CALLS: Final[dict[str, tuple[type[Record], type[Record]]]] = {
    "session": (calls.Hello, calls.Session),
    "lookup": (calls.Lookup, calls.Found),
    "listdir": (calls.ListDir, calls.Listing),
    "attrs": (calls.GetAttrs, calls.Attrs),
    "extents": (calls.GetExtents, calls.FileExtents),
    "list-many": (calls.ListMany, calls.Listings),
    "many-extents": (calls.GetManyExtents, calls.ManyExtents),
    "xattrs": (calls.GetXattrs, calls.Xattrs),
    "commit": (calls.Commit, calls.Committed),
    "reserve": (calls.Reserve, calls.Reserved),
    "plan": (calls.Plan, calls.Placements),
    "locate": (calls.Locate, calls.Located),
    "report-bad": (calls.ReportBad, calls.Done),
    "feed": (calls.FeedPoll, calls.Feed),
    "set-lock": (calls.SetLock, calls.Granted),
    "test-lock": (calls.TestLock, calls.Blocking),
    "drop-locks": (calls.DropLocks, calls.Done),
    "take-locks": (calls.TakeLocks, calls.LockLease),
    "give-locks": (calls.GiveLocks, calls.LocksKept),
    "teams": (calls.GetTeams, calls.Teams),
    "history": (calls.GetHistory, calls.History),
    "history-names": (calls.GetHistoryNames, calls.HistoryNames),
    "resolve": (calls.ResolvePath, calls.Resolved),
    "lease": (calls.TakeLease, calls.Lease),
    "usage": (calls.GetUsage, SpaceUsage),
    "bye": (calls.Bye, calls.Done),
    "heartbeat": (nodes.Heartbeat, nodes.BeatReply),
}
"""verb -> (request, reply). `heartbeat` is the datanodes', the rest are the mounts'."""

R = TypeVar("R")

_encoder = msgspec.msgpack.Encoder()
# msgspec 0.22 learns what a type is made of when its first decoder is made, and a second thread
# that decodes it meanwhile ends the process (a null pointer): one at a time, and early.
_making = threading.Lock()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {
    form: msgspec.msgpack.Decoder(form) for pair in CALLS.values() for form in pair
}


def encode(record: Any) -> bytes:
    """Return the wire form of a record."""
    return _encoder.encode(record)


def decode(raw: bytes | bytearray | memoryview, form: type[R]) -> R:
    """Read a record of type `form`; raise INVALID when the bytes are not one."""
    decoder = _decoders.get(form) or _decoder(form)
    try:
        answer: R = decoder.decode(raw)
    except (msgspec.DecodeError, ValueError, TypeError) as err:
        raise EverfoldError(Kind.INVALID, f"not a {form.__name__}: {err}") from err
    return answer


def _decoder(form: Any) -> msgspec.msgpack.Decoder[Any]:
    with _making:
        if form not in _decoders:
            _decoders[form] = msgspec.msgpack.Decoder(form)
        return _decoders[form]
