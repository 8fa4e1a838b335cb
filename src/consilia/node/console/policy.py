"""Routes of the site's policy: read node.yaml, try a change, put it in force."""

from typing import Any

import msgspec
from litestar import get, post, put
from litestar.params import JSONBody

from consilia.errors import ConfigError, Refused
from consilia.node import config, policyhistory, policyschema
from consilia.node.config import NodeConfig
from consilia.node.console.guard import Who, allow, anyone
from consilia.node.console.services import Here, Services
from consilia.node.console.yamltext import checked
from consilia.node.policy import Policy
from consilia.node.standing import policy_of
from consilia.wire.console.site import (
    DecisionChange,
    PolicyChange,
    PolicyCheckView,
    PolicyDraft,
    PolicyView,
)

# what is decided on the machine itself: a stolen session must not open these doors
LOCAL = ("sandbox", "console", "proxy", "proxy_password_file")


@get("/policy", opt=anyone(), sync_to_thread=True)
def get_policy(here: Here) -> PolicyView:
    """Return node.yaml as written, and as values."""
    return _view(here)


@get("/policy/schema", opt=anyone(), sync_to_thread=True)
def schema(here: Here) -> dict[str, Any]:
    """Return the JSON schema of node.yaml."""
    return policyschema.schema()


@post("/policy/check", opt=anyone(), status_code=200, sync_to_thread=True)
def check(here: Here, data: JSONBody[PolicyDraft]) -> PolicyCheckView:
    """Say what a draft would change, and what it would have decided otherwise."""
    try:
        _check_local(here, data.yaml)
        found = policyhistory.propose(
            here.store, here.directory, data.yaml, "draft", _policies(here)
        )
    except (ConfigError, Refused) as e:
        return PolicyCheckView(str(e), (), policyhistory.DAYS, 0, ())
    return PolicyCheckView(
        "",
        _changes(here, data.yaml, found),
        policyhistory.DAYS,
        found.asked,
        tuple(
            DecisionChange(d.day, d.kind, d.study, d.plan, d.count, d.allowed, d.reasons)
            for d in found.differs
        ),
    )


@put("/policy", opt=allow("administrator"), sync_to_thread=True)
def apply(here: Here, who: Who, data: JSONBody[PolicyDraft]) -> PolicyView:
    """Put a draft in force. `digest` is of the version that it was made from."""
    if not data.digest:
        raise ConfigError("digest: none given; needed that of the version the draft is of")
    _check_local(here, data.yaml)
    policyhistory.apply(
        here.store, here.directory, data.yaml, "draft", _policies(here),
        actor=who.name, now=here.now(), made_from=data.digest,
    )  # fmt: skip
    here.tell_agent()
    return _view(here)


def _view(here: Services) -> PolicyView:
    text = _text(here)
    values = msgspec.to_builtins(config.parse(text, config.FILE))
    return PolicyView(text, values, policyhistory.digest_of(text))


def _text(here: Services) -> str:
    try:
        return (here.directory / config.FILE).read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"{config.FILE} cannot be read: {e.strerror}") from None


def _policies(here: Services) -> policyhistory.Policies:
    def under(settings: NodeConfig) -> Policy:
        return policy_of(here.store, settings)

    return under


def _check_local(here: Services, text: str) -> None:
    old, new = here.config(), config.parse(checked(text), "draft")
    for name in LOCAL:
        if getattr(old, name) != getattr(new, name):
            raise Refused(
                f"{name} is decided on the node's machine, not in a browser: edit "
                f"{config.FILE} there"
            )


def _changes(
    here: Services, text: str, found: policyhistory.Proposal
) -> tuple[PolicyChange, ...]:
    old = msgspec.to_builtins(here.config())
    new = msgspec.to_builtins(config.parse(text, "draft"))
    return tuple(
        PolicyChange(name, _shown(old[name]), _shown(new[name]), name in found.restart)
        for name in found.keys
    )


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()


ROUTES = (get_policy, schema, check, apply)
