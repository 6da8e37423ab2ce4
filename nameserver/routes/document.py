"""``/api/openapi.json``: what the API takes and tells, for programs (see `nameserver.openapi`)."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from nameserver.openapi import document


def blueprint() -> Blueprint:
    """Return the route of the document."""
    routes = Blueprint("document", __name__)

    @routes.get("/api/openapi.json")
    def openapi() -> Response:
        return jsonify(document())

    return routes
