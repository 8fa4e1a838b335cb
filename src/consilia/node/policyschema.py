"""The JSON schema of node.yaml, for editors and for forms: made of the record, with words.

`consilia node policy --schema` prints it; docs/reference/node-policy.schema.json is its
published copy, which a test compares. Every key needs a description here: a key nobody
described cannot be published.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from consilia.node.config import NodeConfig

ID = "https://consilia.dev/schema/node-policy.json"
# One sentence for each key, by its dotted name.
DESCRIPTIONS: Mapping[str, str] = {
    "site": "The site's name, as in its certificate.",
    "hub": "https://host:port of the hub's node listener.",
    "proxy": "http://[user@]host:port of an HTTP CONNECT proxy; empty for none.",
    "proxy_password_file": "File with the password of the proxy's user in its first line.",
    "sandbox": "Walls around approved code: bubblewrap, fewer in a container, or none.",
    "cuda": "Whether plans may use the GPU.",
    "limits": "What one worker may use, and how many work at once.",
    "limits.memory_bytes": "Memory of one worker with all its processes.",
    "limits.seconds": "Time of one task.",
    "limits.threads": "Computing threads of a task; 0 for the agent's own share.",
    "limits.processes": "Processes and threads that a worker may have.",
    "limits.tasks": "Tasks of different jobs at the same time.",
    "limits.idle_seconds": "A worker without a task is closed after this long.",
    "limits.update_bytes": "Size of a first model that a plan may make.",
    "cache_bytes": "Size of the cache of models.",
    "min_records": "Fewest records of a dataset that a task may use.",
    "clip_norm": "Largest L2 norm of an update; 0 for no limit.",
    "arguments": "Range [least, greatest] or choice of values that researchers may set.",
    "disclose_reasons": "Whether the hub is told why a task was refused.",
    "disclosure": "Which numbers about the site's records may leave it.",
    "disclosure.k": "Fewest records that a released number is about.",
    "disclosure.counts": "Whether counts leave rounded to multiples of 5, or exact.",
    "disclosure.metrics": "Which metrics of training leave.",
    "disclosure.metric_digits": "Significant digits of a rounded metric.",
    "disclosure.metrics_per_day": "Tasks of one dataset a day whose metrics may leave.",
    "disclosure.progress_metrics": "Whether metrics may leave while a task runs.",
    "disclosure.progress_per_task": "Messages of one task that may carry metrics.",
    "disclosure.categories": "Levels of one table.",
    "disclosure.answers": "Groups of records that statistics may be told about, for ever.",
    "privacy": "How much the privacy ledger lets be spent, for ever.",
    "privacy.universe": "Of all that is released about one set of patients.",
    "privacy.universe.epsilon": "Largest epsilon.",
    "privacy.universe.delta": "At this delta.",
    "privacy.dataset": "Of one dataset, within its universe.",
    "privacy.dataset.epsilon": "Largest epsilon.",
    "privacy.dataset.delta": "At this delta.",
    "privacy.study": "Of one study.",
    "privacy.study.epsilon": "Largest epsilon.",
    "privacy.study.delta": "At this delta.",
    "privacy.researcher": "Of one researcher.",
    "privacy.researcher.epsilon": "Largest epsilon.",
    "privacy.researcher.delta": "At this delta.",
    "privacy.universes": "Whose patients a dataset has, by its name.",
    "plain_updates": "Whether updates may leave unmasked where masking is possible.",
    "dp_required": "Refuse training, evaluations and statistics without differential privacy.",
    "failures_per_day": "Failures of one plan a day, after which its tasks are refused.",
    "permitted_studies": "Names of studies that may run here; empty for any accepted one.",
    "terms": "What a study must say of itself before its tasks run here.",
    "terms.controllers": "One of these must be the study's controller; empty for any.",
    "terms.legal_bases": "One of these must be the study's legal basis; empty for any.",
    "terms.ethics_required": "The study must name an ethics vote.",
    "terms.end_required": "The study must have a last day.",
    "regions": "Regions that the site is in, as studies name them, such as DE and EU.",
    "statistics": "Sums over records: for studies whose terms say so, for all, or for none.",
    "hours": "When tasks may run, such as mon-fri 19:00-07:00; empty for any time.",
    "reviewers_needed": "Different people who must approve a plan.",
    "consortium_review": "Other sites' reviewers who suffice to approve a plan; null: none do.",
    "consortium_review.reviewers": "Reviewers who must have signed.",
    "consortium_review.sites": "Sites they must come from.",
    "retention_days": "Days after which an ended study's leftovers are deleted; 0: by hand.",
    "log_level": "How much the agent's log tells.",
    "log_bytes": "Size of the log files together.",
    "compressed_updates": "Whether updates that are not masked may leave compressed.",
    "console": "How the site's own web console is served.",
    "console.listen": "host:port that it listens on.",
    "console.beyond_this_machine": "Whether it may listen on another address than loopback.",
    "console.certificate": "PEM file with its certificate and chain; empty: loopback only.",
    "console.key": "PEM file with its key, of mode 600.",
    "console.names": "Host names under which browsers reach it, besides its address.",
    "console.data_roots": "Folders that a data manager may look into.",
    "console.databases": "Databases that a data manager may ask, by name.",
    "console.sign_in": "Sign-in with the hospital's own accounts.",
    "console.sign_in.contact": "Whom people ask who are turned away.",
    "console.sign_in.recheck_minutes": "Minutes until the directory is asked again.",
    "console.sign_in.oidc": "An OpenID Connect provider.",
    "console.sign_in.oidc.issuer": "https://..., exactly as the provider calls itself.",
    "console.sign_in.oidc.client_id": "What the provider calls this console.",
    "console.sign_in.oidc.client_secret_file": "File with its secret, of mode 600; or empty.",
    "console.sign_in.oidc.roles": "Role: values of the groups' claim.",
    "console.sign_in.oidc.label": "What people read on the button.",
    "console.sign_in.oidc.ca": "PEM file of the authority of its certificate.",
    "console.sign_in.oidc.proxy": "http://host:port through which it is reached.",
    "console.sign_in.oidc.scopes": "What is asked for.",
    "console.sign_in.oidc.name_claim": "Claim with the person's name.",
    "console.sign_in.oidc.domain": "Taken off the end of the name, without the @.",
    "console.sign_in.oidc.groups_claim": "Claim with the person's groups.",
    "console.sign_in.oidc.acr": "It must have reached one of these contexts.",
    "console.sign_in.oidc.amr": "It must have used one of these methods.",
    "console.sign_in.oidc.local_second_factor": "Whether a code is asked for here besides.",
    "console.sign_in.ldap": "An LDAP server.",
    "console.sign_in.ldap.url": "ldaps://host, or ldap://host, which speaks StartTLS.",
    "console.sign_in.ldap.base": "Where people are looked for.",
    "console.sign_in.ldap.roles": "Role: distinguished names of groups.",
    "console.sign_in.ldap.label": "What people read beside the fields.",
    "console.sign_in.ldap.ca": "PEM file of the authority of its certificate.",
    "console.sign_in.ldap.plaintext": "Whether passwords may go there without TLS.",
    "console.sign_in.ldap.bind_dn": "A service account that may read people.",
    "console.sign_in.ldap.bind_password_file": "File with its password, of mode 600.",
    "console.sign_in.ldap.user_dn": "Instead: people's own name there, with {name}.",
    "console.sign_in.ldap.filter": "Finds exactly one person, with {name}.",
    "console.sign_in.ldap.subject_attribute": "Attribute that names a person for ever.",
    "console.sign_in.ldap.groups_attribute": "Attribute of the person that lists groups.",
    "console.sign_in.ldap.group_base": "Where groups that list members are looked for.",
    "console.sign_in.ldap.group_filter": "Finds a person's groups, with {dn}.",
    "console.sign_in.ldap.seconds": "Seconds that one question may take.",
    "console.second_factor": "Whether every account must have a second factor.",
    "console.idle_minutes": "Minutes without a request after which a session ends.",
    "console.session_hours": "Hours after which a session ends at the latest.",
}


def keys(kind: type = NodeConfig) -> tuple[str, ...]:
    """Return every key by its dotted name, sections before their keys."""
    return tuple(_keys(inspect.type_info(kind), ""))


def schema() -> dict[str, Any]:
    """Return the schema, unknown keys forbidden at any depth."""
    (found,), parts = msgspec.json.schema_components(
        (NodeConfig,), ref_template="#/$defs/{name}"
    )
    del found
    whole = _resolved(parts["NodeConfig"], parts, "")
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": ID, **whole}
    whole["title"], whole["description"] = "node.yaml", "The policy of one site's node."
    return whole


def text() -> str:
    """Return the schema as JSON, as it is published."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n"


def _resolved(part: dict[str, Any], parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part with its references written out, so that each key has its own words."""
    if "$ref" in part:
        default = {k: v for k, v in part.items() if k == "default"}
        part = {**parts[part["$ref"].rpartition("/")[2]], **default}
    found = {k: v for k, v in part.items() if k not in ("title", "description")}
    if "anyOf" in found:
        found["anyOf"] = [_resolved(option, parts, name) for option in found["anyOf"]]
    if "properties" in found:
        found["properties"] = {
            key: _resolved(value, parts, f"{name}.{key}".lstrip("."))
            for key, value in found["properties"].items()
        }
        found["additionalProperties"] = False
    if name in DESCRIPTIONS:
        found["description"] = DESCRIPTIONS[name]
    return found


def _keys(info: inspect.Type, name: str) -> Iterator[str]:
    if isinstance(info, inspect.UnionType):
        for option in info.types:
            yield from _keys(option, name)
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            here = f"{name}.{field.encode_name}".lstrip(".")
            yield here
            yield from _keys(field.type, here)
