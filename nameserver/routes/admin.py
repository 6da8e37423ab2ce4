"""What admins and tools ask: users, nodes, the state of the cluster, fsck."""

from __future__ import annotations

from flask import Blueprint

from everfold.model import NodeId
from nameserver.accounts import USER
from nameserver.routes.auth import Guard
from nameserver.routes.forms import Json, fields, number, text
from nameserver.service import Service


def blueprint(service: Service, guard: Guard) -> Blueprint:
    """Return the routes of administration."""
    admin = Blueprint("admin", __name__)

    @admin.get("/status")
    @guard.login
    def status() -> Json:
        return service.status.figures()

    @admin.get("/admin/system")
    @guard.admin
    def system() -> Json:
        return {**service.status.figures(), **service.status.system()}

    @admin.get("/admin/system/nodes")
    @guard.admin
    def nodes() -> list[Json]:
        return service.status.nodes()

    @admin.post("/admin/system/fail-node/<node>")
    @guard.admin
    def fail_node(node: str) -> Json:
        service.fail_node(NodeId(node), guard.who.name)
        return service.status.node(NodeId(node))

    @admin.post("/admin/system/repair-node/<node>")
    @guard.admin
    def repair_node(node: str) -> Json:
        service.repair_node(NodeId(node), guard.who.name)
        return service.status.node(NodeId(node))

    @admin.post("/admin/fsck")
    @guard.admin
    def fsck() -> Json:
        return service.fsck.run()

    _users(admin, service, guard)
    return admin


def _users(admin: Blueprint, service: Service, guard: Guard) -> None:
    @admin.post("/register")
    @admin.post("/admin/users")
    @guard.admin
    def create() -> tuple[Json, int]:
        form = fields()
        user = service.accounts.create(
            text(form, "username"),
            text(form, "password"),
            text(form, "email", ""),
            text(form, "role", USER),
            quota=number(form, "quota", service.policy.default_quota),
            author=guard.who.name,
        )
        return {"user": user.to_json()}, 201

    @admin.get("/api/admin/users")
    @admin.get("/admin/users")
    @guard.admin
    def users() -> Json:
        return {"users": [user.to_json() for user in service.accounts.all()]}

    @admin.put("/api/admin/users/<name>/password")
    @admin.put("/admin/users/<name>/password")
    @guard.admin
    def passwd(name: str) -> Json:
        service.accounts.set_password(name, text(fields(), "password"), guard.who.name)
        return {"user": service.accounts.get(name).to_json()}

    @admin.put("/api/admin/users/<name>/disabled")
    @guard.admin
    def disable(name: str) -> Json:
        is_disabled = bool(fields().get("disabled", True))
        service.accounts.disable(name, is_disabled, guard.who.name)
        return {"user": service.accounts.get(name).to_json()}
