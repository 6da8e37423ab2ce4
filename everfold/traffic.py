"""What a server answers, counted by kind of request: how many, how long, how many bytes, how well.

A `Front` is put behind one that counts. It costs a direct call less than 2 us. Bytes are those of
bodies; a file that is sent by sendfile(2) is counted by who knows its length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Final

from everfold.durations import Durations
from everfold.exchange import Answer, Environ, Front, Request, StartResponse, Wsgi
from everfold.gateway import FileBody

POWERS: Final = range(17, 37)  # of a nanosecond: 0.13 ms to 69 s, the histogram's bounds


class Course:
    """What came of one kind of request."""

    __slots__ = ("begun", "bytes_in", "bytes_out", "durations", "failed")

    def __init__(self) -> None:
        self.begun = 0  # those that are not in `durations` yet are under way
        self.durations = Durations()
        self.bytes_in = self.bytes_out = 0
        self.failed: defaultdict[int, int] = defaultdict(int)  # by status, from 400 up


class Traffic:
    """All requests of a server. `kind_of` names the kind of a method and a path."""

    def __init__(self, kind_of: Callable[[str, str], str]) -> None:
        self.courses: dict[str, Course] = {}
        self._kind_of = kind_of

    def course(self, kind: str) -> Course:
        """Return the counts of a kind."""
        return self.courses.setdefault(kind, Course())

    def counted(self, front: Front, direct_kind: Callable[[Request], str | None]) -> Front:
        """Return a front that counts what this one answers.

        `direct_kind` names the kind of what it answers directly; None: that is not for it.
        """
        return Front(self._direct(front, direct_kind), self._rest(front.rest))

    def _direct(
        self, front: Front, direct_kind: Callable[[Request], str | None]
    ) -> Callable[[Request], Answer | None]:
        inner, known = front.direct, self.courses

        def direct(request: Request) -> Answer | None:
            kind = direct_kind(request)
            if kind is None:
                return inner(request)
            began = perf_counter_ns()
            course = known.get(kind) or self.course(kind)
            course.begun += 1
            answer = inner(request)
            course.durations.note(perf_counter_ns() - began)
            if answer is None:
                return None
            length = request.header("content-length")
            if length and length.isdecimal():
                course.bytes_in += int(length)
            body = answer.body
            if type(body) is bytes:
                course.bytes_out += len(body)
            elif type(body) is list:
                course.bytes_out += sum(map(len, body))
            if answer.status >= 400:
                course.failed[answer.status] += 1
            return answer

        return direct

    def _rest(self, app: Wsgi) -> Wsgi:
        def rest(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            kind = self._kind_of(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            call = _Counted(self.course(kind), environ)

            def started(status: str, fields: list[tuple[str, str]], *more: object) -> object:
                call.status = int(status[:3])
                return start_response(status, fields, *more)

            try:
                call.body = app(environ, started)
            except BaseException:
                call.status = 500
                call.close()
                raise
            if isinstance(call.body, FileBody):
                return _CountedFile(call.body, call)
            return call

        return rest


class _Counted:
    """An answer by WSGI on its way; counted when it is closed."""

    def __init__(self, course: Course, environ: Environ) -> None:
        self.status = 0
        self.body: Iterable[bytes] = ()
        self.sent = 0
        self._course = course
        self._began = perf_counter_ns()
        course.begun += 1
        told = environ.get("CONTENT_LENGTH") or ""
        self._length = int(told) if told.isascii() and told.isdigit() else 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.body:
            self.sent += len(chunk)
            yield chunk

    def close(self) -> None:
        """Count it, and let the application end."""
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            course = self._course
            course.durations.note(perf_counter_ns() - self._began)
            course.bytes_in += self._length
            course.bytes_out += self.sent
            if self.status >= 400:
                course.failed[self.status] += 1


class _CountedFile(FileBody):
    """A file that the server may send by itself; it is counted in full."""

    def __init__(self, real: FileBody, call: _Counted) -> None:
        super().__init__(real.file)
        self._call = call
        position = real.file.tell()
        call.sent = real.file.seek(0, 2) - position
        real.file.seek(position)

    def close(self) -> None:
        self._call.close()


def text(traffic: Traffic, prefix: str, process: str) -> list[str]:
    """Return the counts as lines of Prometheus' text form.

    Several processes may answer at one address in turn: `process` tells their counts apart.
    """
    lines = _lines(traffic, prefix)
    return [
        line if line.startswith("#") else line.replace("{", f'{{process="{process}",', 1)
        for line in lines
    ]


def _lines(traffic: Traffic, prefix: str) -> list[str]:
    courses = sorted(traffic.courses.items())
    lines = [f"# TYPE {prefix}_request_seconds histogram"]
    for kind, course in courses:
        lines += _histogram(f"{prefix}_request_seconds", kind, course.durations)
    lines.append(f"# TYPE {prefix}_requests_under_way gauge")
    lines += [
        f'{prefix}_requests_under_way{{kind="{kind}"}} {max(0, c.begun - c.durations.count)}'
        for kind, c in courses
    ]
    for name in ("bytes_in", "bytes_out"):
        lines.append(f"# TYPE {prefix}_request_{name}_total counter")
        lines += [
            f'{prefix}_request_{name}_total{{kind="{kind}"}} {getattr(course, name)}'
            for kind, course in courses
        ]
    lines.append(f"# TYPE {prefix}_request_failures_total counter")
    for kind, course in courses:
        lines += [
            f'{prefix}_request_failures_total{{kind="{kind}",status="{status}"}} {count}'
            for status, count in sorted(course.failed.items())
        ]
    return lines


def _histogram(name: str, kind: str, durations: Durations) -> list[str]:
    lines = [
        f'{name}_bucket{{kind="{kind}",le="{(1 << power) / 1e9}"}} {durations.below(power)}'
        for power in POWERS
    ]
    count = sum(durations.buckets)
    return [
        *lines,
        f'{name}_bucket{{kind="{kind}",le="+Inf"}} {count}',
        f'{name}_sum{{kind="{kind}"}} {durations.total_ns / 1e9:.6f}',
        f'{name}_count{{kind="{kind}"}} {count}',
    ]
