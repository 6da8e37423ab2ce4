"""The short routes, health, and this document: routes/storage.py, app.py, routes/document.py."""

from __future__ import annotations

from typing import Final

from nameserver.openapi.files import (
    DEVICE,
    DOWNLOADED,
    DOWNLOADING,
    FILE,
    LISTED,
    NOT_LOADED,
    NOT_TAKEN,
    PAGE,
    UPLOADED,
    UPLOADING,
)  # fmt: skip
from nameserver.openapi.people import CREDENTIALS, LOGGED_IN
from nameserver.openapi.schemas import USAGE_FIELDS
from nameserver.openapi.terms import BYTES, COUNT, OPEN, TEXT, Body, Route, maybe, obj, one_of, ref

ROUTES: Final = (
    Route(
        "post", "/login", "Get a token", {200: LOGGED_IN}, Body(CREDENTIALS), errors=(401, 429),
        access=OPEN,
    ),
    Route(
        "post", "/upload", "Upload a file", {201: FILE}, UPLOADED, (DEVICE, *UPLOADING), NOT_TAKEN,
    ),
    Route(
        "get", "/files", "List all files at any depth", {200: PAGE}, None, (DEVICE, *LISTED),
        (404, 409),
    ),
    Route(
        "get", "/files/{file}", "Tell of a file, with its replica map",
        {200: obj(file=ref("File"), file_id=TEXT, replicas=maybe(ref("Replicas")))}, None,
        (DEVICE,),
    ),
    Route(
        "delete", "/files/{file}", "Delete a file and all its versions, for good",
        {200: obj(message=TEXT, file=ref("File"), file_id=TEXT)}, None, (DEVICE,),
        (404, 409, 410, 507),
    ),
    Route(
        "get", "/download/{file}", "Download", DOWNLOADED, None, (DEVICE, *DOWNLOADING), NOT_LOADED,
    ),
    Route(
        "get", "/storage", "Tell what one uses",
        {200: obj(used=COUNT, limit=COUNT, available=maybe(COUNT), **USAGE_FIELDS)}, None,
        (DEVICE,), (404,),
    ),
    Route("get", "/healthz", "It runs", {200: obj(status=one_of("ok"))}, access=OPEN),
    Route("get", "/readyz", "It can answer", {200: obj(status=one_of("ok"))}, access=OPEN),
    Route("get", "/metrics", "Figures for Prometheus", {200: BYTES}, access=OPEN),
    Route("get", "/api/openapi.json", "This document", {200: {"type": "object"}}, access=OPEN),
)  # fmt: skip
