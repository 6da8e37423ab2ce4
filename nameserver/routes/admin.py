"""What admins and tools ask: users, nodes, the state of the cluster, fsck."""

from __future__ import annotations

from flask import Blueprint

from everfold.errors import EverfoldError, Kind
from everfold.model import NodeId
from nameserver import audit
from nameserver.accounts import USER
from nameserver.policy import DAY_S
from nameserver.routes.auth import Guard
from nameserver.routes.files import flag, truth, word
from nameserver.routes.files import number as asked_number
from nameserver.routes.forms import Json, fields, number, optional_fields, text
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

    @admin.post("/admin/system/drain-node/<node>")
    @guard.admin
    def drain_node(node: str) -> Json:
        service.departures.drain(NodeId(node), guard.who.name)
        return service.status.node(NodeId(node))

    @admin.post("/admin/system/remove-node/<node>")
    @guard.admin
    def remove_node(node: str) -> Json:
        is_forced = flag("force") or truth(optional_fields(), "force")
        needed = service.departures.remove(NodeId(node), guard.who.name, is_forced)
        return {"removed": node, "lacking": needed.to_copy, "lost": needed.sole}

    @admin.get("/admin/system/load")
    @guard.admin
    def load() -> Json:
        return service.load.series(asked_number("minutes", 60, 1, 24 * 60))

    @admin.get("/admin/audit")
    @guard.admin
    def audits() -> Json:
        at, size = asked_number("page", 1, 1, 1 << 31), asked_number("per_page", 50, 1, 1000)
        with service.db.read() as cx:
            total, lines = audit.page(cx, at, size, word("author"), word("action"))
        pages = -(-total // size)
        return {
            "audit": lines,
            "total": total,
            "page": at,
            "pages": pages,
            "per_page": size,
            "has_next": at < pages,
            "has_prev": at > 1,
        }

    @admin.post("/admin/fsck")
    @guard.admin
    def fsck() -> Json:
        return service.fsck.run(is_repairing=flag("repair") or truth(optional_fields(), "repair"))

    _users(admin, service, guard)
    _invitations(admin, service, guard)
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

    @admin.get("/admin/users/<name>")
    @guard.admin
    def user(name: str) -> Json:
        return {"user": service.accounts.get(name).to_json()}

    @admin.put("/admin/users/<name>")
    @guard.admin
    def change(name: str) -> Json:
        form = fields()
        if not form.keys() & {"quota", "role", "disabled"}:
            raise EverfoldError(Kind.INVALID, "give quota, role or disabled")
        service.accounts.change(
            name,
            guard.who.name,
            quota=number(form, "quota", 0) if "quota" in form else None,
            role=text(form, "role") if "role" in form else None,
            is_disabled=truth(form, "disabled") if "disabled" in form else None,
        )
        return {"user": service.accounts.get(name).to_json()}

    @admin.put("/api/admin/users/<name>/disabled")
    @guard.admin
    def disable(name: str) -> Json:
        form = fields()
        is_disabled = truth(form, "disabled") if "disabled" in form else True
        service.accounts.disable(name, is_disabled, guard.who.name)
        return {"user": service.accounts.get(name).to_json()}


def _invitations(admin: Blueprint, service: Service, guard: Guard) -> None:
    @admin.post("/admin/invitations")
    @guard.admin
    def invite() -> tuple[Json, int]:
        form = optional_fields()
        days = number(form, "expires_in_days", 0)
        made, token = service.invitations.make(
            guard.who.name,
            email=text(form, "email", ""),
            role=text(form, "role", USER),
            quota=number(form, "quota", service.policy.default_quota),
            ttl_s=days * DAY_S or service.policy.invitation_ttl_s,
        )
        return {"invitation": {**made.to_json(), "token": token}}, 201

    @admin.get("/admin/invitations")
    @guard.admin
    def invitations() -> Json:
        return {"invitations": [each.to_json() for each in service.invitations.all()]}

    @admin.delete("/admin/invitations/<invitation>")
    @guard.admin
    def withdraw(invitation: str) -> Json:
        service.invitations.withdraw(invitation, guard.who.name)
        return {"withdrawn": invitation}
