"""The page about the protocol says what the code says."""

from __future__ import annotations

from everfold import wire
from tools import protocol


def test_the_protocol_page_is_what_the_wire_module_says() -> None:
    page = protocol.PAGE.read_text(encoding="utf-8")

    assert page == protocol.with_generated(page), "run: python -m tools.protocol"


def test_every_call_and_operation_stands_on_the_protocol_page() -> None:
    page = protocol.PAGE.read_text(encoding="utf-8")

    for verb in wire.CALLS:
        assert f"| `{verb}` |" in page
    for operation in wire.AnyOp.__args__:
        assert f"### {operation.__name__}\n" in page
