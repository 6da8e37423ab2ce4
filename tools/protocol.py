"""Writes the tables of `docs/PROTOCOL.md` from `everfold.wire`: ``python -m tools.protocol``.

The page's prose is written by hand; what stands between its two markers is generated, and a
test compares it with what this module says now.
"""

from __future__ import annotations

import enum
import sys
import types
import typing
from pathlib import Path

from everfold import wire
from everfold.errors import Kind
from everfold.model import Record

PAGE = Path(__file__).resolve().parent.parent / "docs" / "PROTOCOL.md"
START, END = "<!-- generated: start -->", "<!-- generated: end -->"


def _name(form: object) -> str:
    """Return a type as people write it."""
    if isinstance(form, types.UnionType) or typing.get_origin(form) is typing.Union:
        return " or ".join(_name(each) for each in typing.get_args(form))
    origin = typing.get_origin(form)
    if origin is not None:
        inner = ", ".join(_name(each) for each in typing.get_args(form))
        return f"{origin.__name__}[{inner}]"
    if form is type(None):
        return "nil"
    if isinstance(form, typing.NewType):
        return f"{form.__name__}"
    return getattr(form, "__name__", str(form))


def _records(roots: list[type[Record]]) -> list[type[Record]]:
    """Return every record that the roots lead to, each once, in order of discovery."""
    found: dict[type[Record], None] = {}
    waiting: list[object] = list(roots)
    while waiting:
        form = waiting.pop(0)
        waiting[:0] = typing.get_args(form)
        if isinstance(form, type) and issubclass(form, Record) and form not in found:
            found[form] = None
            hints = typing.get_type_hints(form)
            waiting[:0] = [hints[name] for name in form.__struct_fields__]
    return list(found)


def _enums(records: list[type[Record]]) -> list[type[enum.Enum]]:
    found: dict[type[enum.Enum], None] = {}
    for record in records:
        for form in typing.get_type_hints(record).values():
            if isinstance(form, type) and issubclass(form, enum.Enum):
                found[form] = None
    return list(found)


def _section(record: type[Record]) -> list[str]:
    tag = record.__struct_config__.tag
    first = [f"0: `{tag!r}`"] if tag is not None else []
    hints = typing.get_type_hints(record)
    fields = [
        f"{index}: `{name}` {_name(hints[name])}"
        for index, name in enumerate(record.__struct_fields__, len(first))
    ]
    summary = (record.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    return [f"### {record.__name__}", "", summary, "", "; ".join(first + fields) or "empty", ""]


def generated() -> str:
    """Return the generated part of the page."""
    lines = ["## Calls", "", "| `POST /v1/…` | request | reply |", "|---|---|---|"]
    roots: list[type[Record]] = []
    for verb, (ask, answer) in wire.CALLS.items():
        lines.append(f"| `{verb}` | {ask.__name__} | {answer.__name__} |")
        roots += [ask, answer]
    lines += ["", "## Records", "", "Position in the array: name and type.", ""]
    records = _records(roots)
    for record in records:
        lines += _section(record)
    lines += ["## Words", ""]
    for words in _enums(records):
        lines.append(f"- {words.__name__}: " + ", ".join(f"`{each.value}`" for each in words))
    lines += ["", "## Failures", "", "| kind | HTTP | errno | try again |", "|---|---|---|---|"]
    lines += [
        f"| `{kind.value}` | {kind.http_status} | {kind.errno} | "
        f"{'yes' if kind.may_retry else 'no'} |"
        for kind in Kind
    ]
    return "\n".join(lines) + "\n"


def with_generated(page: str) -> str:
    """Return the page with its generated part made anew."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{generated()}\n{END}{tail}"


def main() -> int:
    """Rewrite the page in place."""
    PAGE.write_text(with_generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
