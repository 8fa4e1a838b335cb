"""Who may do what: one line per operation of the people's API, and the only place of it.

Deny by default: an operation without a line admits nobody, and a test fails until it has one.
A role here opens the door; which studies lie behind it is decided by what the person sees
(`roles.Caller`): another's study answers 404. The OpenAPI document shows the line of each
operation as `x-roles`, and one test per role and operation is made from that document.
"""

from collections.abc import Mapping
from typing import Final, Literal

from consilia.hub.people.roles import ROLES, Role, Roles

Open = Literal["open"]
OPEN: Open = "open"  # nobody is asked who they are
EVERYONE: Roles = frozenset(ROLES)
TRUSTED: Roles = frozenset[Role]({"operator", "auditor"})
OPERATOR: Roles = frozenset[Role]({"operator"})
READERS: Roles = frozenset[Role]({"operator", "researcher", "reviewer", "auditor"})
WRITERS: Roles = frozenset[Role]({"operator", "researcher"})
AT_SITES: Roles = READERS | {"data-manager"}

RIGHTS: Final[Mapping[str, Roles | Open]] = {
    # machines
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": TRUSTED,
    "GET /api/v1/openapi.json": EVERYONE,
    # signing in
    "GET /api/v1/auth/providers": OPEN,
    "POST /api/v1/auth/login": OPEN,
    "POST /api/v1/auth/refresh": OPEN,
    "POST /api/v1/auth/logout": OPEN,
    "GET /api/v1/auth/oidc/{provider}/start": OPEN,
    "GET /api/v1/auth/oidc/{provider}/callback": OPEN,
    "POST /api/v1/invitations/accept": OPEN,
    "GET /api/v1/auth/me": EVERYONE,
    "POST /api/v1/auth/password": EVERYONE,
    "POST /api/v1/auth/second-factor": EVERYONE,
    "POST /api/v1/auth/second-factor/confirm": EVERYONE,
    "DELETE /api/v1/auth/second-factor": EVERYONE,
    "GET /api/v1/whoami": EVERYONE,
    # people
    "GET /api/v1/users": TRUSTED,
    "POST /api/v1/users": OPERATOR,
    "GET /api/v1/users/{name}": TRUSTED,
    "PATCH /api/v1/users/{name}": OPERATOR,
    "DELETE /api/v1/users/{name}": OPERATOR,
    "POST /api/v1/users/{name}/end-sessions": OPERATOR,
    "GET /api/v1/invitations": TRUSTED,
    "POST /api/v1/invitations": WRITERS,
    "DELETE /api/v1/invitations/{id}": OPERATOR,
    "GET /api/v1/access-requests": EVERYONE,
    "POST /api/v1/access-requests": EVERYONE,
    "POST /api/v1/access-requests/{id}/grant": WRITERS,
    "POST /api/v1/access-requests/{id}/refuse": WRITERS,
    "GET /api/v1/keys": EVERYONE,
    "POST /api/v1/keys": EVERYONE,
    "DELETE /api/v1/keys/{id}": EVERYONE,
    "GET /api/v1/tokens": TRUSTED,
    "POST /api/v1/tokens": OPERATOR,
    "DELETE /api/v1/tokens/{id}": OPERATOR,
    # sites
    "GET /api/v1/sites": AT_SITES,
    "POST /api/v1/sites": OPERATOR,
    "POST /api/v1/sites/{name}/revoke": OPERATOR,
    # studies and plans
    "GET /api/v1/studies": AT_SITES,
    "POST /api/v1/studies": WRITERS,
    "GET /api/v1/studies/{name}": AT_SITES,
    "PUT /api/v1/studies/{name}": WRITERS,
    "POST /api/v1/studies/{name}/submit": WRITERS,
    "POST /api/v1/studies/{name}/revise": WRITERS,
    "POST /api/v1/studies/{name}/close": WRITERS,
    "GET /api/v1/studies/{name}/datasets": AT_SITES,
    "GET /api/v1/plans": AT_SITES,
    "POST /api/v1/plans": WRITERS,
    "GET /api/v1/plans/{digest}": AT_SITES,
    # experiments and jobs
    "POST /api/v1/experiments/validate": WRITERS,
    "POST /api/v1/experiments/privacy": WRITERS,
    "GET /api/v1/jobs": READERS,
    "POST /api/v1/jobs": WRITERS,
    "GET /api/v1/jobs/{id}": READERS,
    "POST /api/v1/jobs/{id}/stop": WRITERS,
    "POST /api/v1/jobs/{id}/resume": WRITERS,
    "POST /api/v1/jobs/{id}/pause": WRITERS,
    "POST /api/v1/jobs/{id}/rollback": WRITERS,
    "POST /api/v1/jobs/{id}/arguments": WRITERS,
    "GET /api/v1/jobs/{id}/evaluations": READERS,
    "GET /api/v1/jobs/{id}/statistics": READERS,
    "POST /api/v1/statistics": WRITERS,
    "GET /api/v1/jobs/{id}/events": READERS,
    "GET /api/v1/jobs/{id}/stream": READERS,
    "GET /api/v1/jobs/{id}/audit": READERS,
    "GET /api/v1/jobs/{id}/metrics": READERS,
    "POST /api/v1/jobs/{id}/clone": WRITERS,
    "GET /api/v1/queue": READERS,
    "GET /api/v1/status": READERS,
    "GET /api/v1/budgets": READERS,
    "GET /api/v1/health": READERS,
    "POST /api/v1/start": WRITERS,
    "POST /api/v1/join": OPERATOR,
    # models
    "GET /api/v1/models": READERS | {"downstream"},
    "GET /api/v1/models/{id}": READERS | {"downstream"},
    "GET /api/v1/models/{id}/frame": WRITERS | {"reviewer", "downstream"},
    "GET /api/v1/models/{id}/card": READERS | {"downstream"},
    "POST /api/v1/models/{id}/stage": WRITERS | {"reviewer"},
    "PUT /api/v1/frames": WRITERS,
    # the trail
    "GET /api/v1/audit": TRUSTED,
    "GET /api/v1/audit/export": TRUSTED,
    "GET /api/v1/audit/verify": TRUSTED,
}

# Where a role in one study counts, too, and where a key for one study is let in. Everywhere
# else only roles at the hub do: an auditor of one study reads no other's trail.
IN_STUDY: Final[frozenset[str]] = frozenset(
    operation
    for operation in RIGHTS
    if operation.split("/api/v1/")[-1].split("/")[0]
    in (
        "studies",
        "plans",
        "experiments",
        "jobs",
        "models",
        "frames",
        "queue",
        "status",
        "budgets",
        "start",
        "statistics",
    )
) - {"POST /api/v1/studies"}
ABOUT_ONESELF: Final[frozenset[str]] = frozenset(
    operation for operation, roles in RIGHTS.items() if roles == EVERYONE
)
# what somebody may do who has yet to set up a second factor that the hub asks for
ENROLLING: Final[frozenset[str]] = frozenset(
    {
        "GET /api/v1/auth/me",
        "POST /api/v1/auth/password",
        "POST /api/v1/auth/second-factor",
        "POST /api/v1/auth/second-factor/confirm",
    }
)


def of(operation: str) -> Roles | Open:
    """Return whom "METHOD /path" admits; nobody when it has no line."""
    return RIGHTS.get(operation, frozenset())
