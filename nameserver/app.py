"""The Flask application: blueprints, request ids, and one place where errors become answers."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter

from everfold.errors import EverfoldError, Kind
from everfold.exchange import Front
from everfold.log import adopt_request_id, request_id
from everfold.wire import REQUEST_ID
from nameserver import audit
from nameserver.live.sockets import Sockets
from nameserver.load import direct_kind
from nameserver.metrics import Metrics
from nameserver.routes import (
    admin,
    document,
    files,
    hot,
    people,
    session,
    shares,
    storage,
    sync,
    teams,
    uploads,
    versions,
    web,
)
from nameserver.routes.auth import Guard
from nameserver.routes.forms import BODY_MAX
from nameserver.service import Service

_log = logging.getLogger(__name__)
_HTTP_KINDS = {
    400: Kind.INVALID,
    401: Kind.UNAUTHENTICATED,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    405: Kind.UNSUPPORTED,
    413: Kind.TOO_LARGE,
    429: Kind.RATE_LIMITED,
}


class _FileId(BaseConverter):
    """An id in a route that stands beside others: ``/api/files/list`` is no file's."""

    regex = r"[0-9]{1,12}-[0-9]{1,24}"


def create_app(service: Service) -> Front:
    """Return what a nameserver answers: hot calls directly, the rest by Flask."""
    app = flask_app(service)
    service.at_stop(Sockets(app, service).stop)
    front = Front(hot.HotCalls(service), app)
    return service.load.traffic.counted(front, direct_kind)


def flask_app(service: Service) -> Flask:
    """Return the application with all routes."""
    app = Flask(__name__, static_folder=None)
    app.secret_key = service.secret_key
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX  # of bodies without a length, too
    app.url_map.converters["id"] = _FileId
    guard = Guard(service.gate, service.secret_key)
    app.url_map.strict_slashes = False  # no redirects: a POST would lose its body
    app.register_blueprint(web.blueprint())
    app.register_blueprint(session.blueprint(service, guard))
    app.register_blueprint(document.blueprint())
    app.register_blueprint(people.blueprint(service, guard))
    app.register_blueprint(admin.blueprint(service, guard))
    app.register_blueprint(files.blueprint(service.files, guard))
    app.register_blueprint(uploads.blueprint(service.files, guard))
    app.register_blueprint(versions.blueprint(service.files, guard))
    app.register_blueprint(shares.blueprint(service.files, guard))
    app.register_blueprint(storage.blueprint(service, guard))
    app.register_blueprint(sync.blueprint(service, guard))
    app.register_blueprint(teams.blueprint(service, guard))
    _health(app, service)

    @app.before_request
    def adopt() -> None:
        adopt_request_id(request.environ.get("HTTP_X_REQUEST_ID"))
        audit.came_from(request.remote_addr or "")

    @app.teardown_request
    def forget(err: BaseException | None) -> None:
        audit.came_from("")

    @app.after_request
    def tell(answer: Response) -> Response:
        answer.headers[REQUEST_ID] = request_id()
        return answer

    app.register_error_handler(EverfoldError, _known)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unknown)
    return app


def _known(err: EverfoldError) -> Response:
    if err.kind is Kind.INTERNAL:
        _log.error("%s %s failed", request.method, request.path, exc_info=err)
    return _answer(err, err.kind.http_status)


def _http(err: HTTPException) -> Response:
    status = err.code or 500
    kind = _HTTP_KINDS.get(status, Kind.INTERNAL if status >= 500 else Kind.INVALID)
    answer = _answer(EverfoldError(kind, err.name, request.path[:200]), status)
    if isinstance(err, MethodNotAllowed) and err.valid_methods:
        answer.headers["Allow"] = ", ".join(sorted(err.valid_methods))
    return answer


def _unknown(err: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.path, exc_info=err)
    return _answer(EverfoldError(Kind.INTERNAL, "a defect of the server; its log tells more"), 500)


def _answer(err: EverfoldError, status: int) -> Response:
    answer = jsonify(error=err.to_wire())
    answer.status_code = status
    if status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="everfold"'
    if err.kind is Kind.RATE_LIMITED:  # its subject is the seconds to wait
        answer.headers["Retry-After"] = err.subject if err.subject.isdigit() else "60"
    return answer


def _health(app: Flask, service: Service) -> None:
    figures = Metrics(service)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(figures.text(), mimetype="text/plain; version=0.0.4")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        service.check_ready()
        return {"status": "ok"}
