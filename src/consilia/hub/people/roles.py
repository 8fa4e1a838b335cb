"""Roles, and who asks: what a person or a machine may see and move. Pure.

A person holds roles at the hub and roles in single studies. A role at the hub reaches every
study, with two exceptions: a researcher sees the studies they made, a data manager those that
invite their own site. What a person may not see does not exist for them (404, never 403).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, get_args

from consilia.errors import ConfigError
from consilia.wire.strict import nearest

Role = Literal["operator", "researcher", "reviewer", "data-manager", "downstream", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)
# who holds several is shown, where one word is asked for, as the first of these
ORDER: tuple[Role, ...] = (
    "operator", "reviewer", "auditor", "researcher", "data-manager", "downstream",
)  # fmt: skip
STUDY_ROLES: tuple[Role, ...] = ("researcher", "reviewer", "downstream", "auditor")
SEE_ALL: frozenset[Role] = frozenset({"operator", "reviewer", "auditor"})
SEE_STUDY: frozenset[Role] = frozenset({"researcher", "reviewer", "auditor"})
Roles = frozenset[Role]
NONE: Mapping[str, Roles] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Seeing:
    """Which studies a list is limited to: those `author` made, and `studies` besides."""

    author: str | None  # None: nobody's
    studies: frozenset[str] = frozenset()
    within: str = ""  # and of these no other than this one; "" for any


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `name` stands as author of what they make, and in the audit trail."""

    name: str
    roles: Roles  # at the hub
    studies: Mapping[str, Roles] = field(
        default_factory=lambda: NONE, hash=False
    )  # roles in one study
    site: str = ""  # a data manager's own; "" for none
    key: str = ""  # name of the API key that speaks for them; "" when they are there themselves
    session: str = ""  # id of the session; "" for an API key
    within: str = ""  # the only study a key may touch; "" for any

    @property
    def role(self) -> Role:
        """The one role that says most."""
        held = self.every
        return next((role for role in ORDER if role in held), "downstream")

    @property
    def every(self) -> Roles:
        """All roles, wherever they are held."""
        return self.roles.union(*self.studies.values())

    @property
    def actor(self) -> str:
        """How the audit trail names them: a key by its owner's name and its own."""
        return f"user:{self.name}/{self.key}" if self.key else f"user:{self.name}"

    @property
    def only(self) -> Seeing | None:
        """Whose studies their lists are limited to; None: all are theirs to see."""
        if self.roles & SEE_ALL:
            return Seeing(None, frozenset({self.within})) if self.within else None
        theirs = frozenset(s for s, held in self.studies.items() if held & SEE_STUDY)
        author = self.name if "researcher" in self.roles else None
        return Seeing(author, theirs, self.within)

    def owns(self, author: str, study: str) -> bool:
        """Return whether the caller may change a study that `author` made.

        A role in another study does not count: it was given for that one.
        """
        mine = self.name == author and "researcher" in self.decides_in(study)
        return "operator" in self.roles or mine

    def reaches(self, study: str) -> bool:
        """Return whether the caller may touch this study at all: a key may be for another."""
        return self.within in ("", study)

    def works_in(self, study: str, author: str) -> bool:
        """Return whether the caller may offer plans and run experiments in a study."""
        return self.owns(author, study) or "researcher" in self.studies.get(study, ())

    def steers(self, study: str, author: str, made_by: str) -> bool:
        """Return whether the caller may move what `made_by` made in a study of `author`'s.

        Who made it, as long as they may work there; an operator always.
        """
        mine = self.name == made_by and self.works_in(study, author)
        return "operator" in self.roles or mine

    def as_user(self) -> "Caller":
        """Return the caller without the role auditor, which reads and has no use of models.

        Held against this is what gives somebody a model's tensors: who is auditor of one study
        and researcher of another must not carry them from the first to the second.
        """
        if "auditor" not in self.every:
            return self
        auditor = frozenset[Role]({"auditor"})
        studies = {study: held - auditor for study, held in self.studies.items()}
        return replace(self, roles=self.roles - auditor, studies=studies)

    def decides_in(self, study: str) -> Roles:
        """Return the roles that count for what belongs to one study."""
        return self.roles | self.studies.get(study, frozenset())

    def sees(self, author: str, study: str, sites: Iterable[str] = ()) -> bool:
        """Return whether the caller may read a study that `author` made and these sites are in.

        Without `sites`: whether they may read its jobs and models, too.
        """
        return self.reaches(study) and (
            bool(self.roles & SEE_ALL)
            or ("researcher" in self.roles and self.name == author)
            or bool(self.studies.get(study, frozenset()) & SEE_STUDY)
            or ("data-manager" in self.roles and bool(self.site) and self.site in sites)
        )


def checked(roles: Iterable[str], where: str = "roles") -> tuple[Role, ...]:
    """Return roles sorted and once each; raise ConfigError for none or an unknown one."""
    found = tuple(sorted(set(roles)))
    if not found:
        raise ConfigError(f"{where}: none given; needed one or more of {', '.join(ROLES)}")
    for role in found:
        if role not in ROLES:
            raise ConfigError(f"{where}: {role[:40]!r} is not a role{nearest(role, ROLES)}")
    return tuple(role for role in ROLES if role in found)


def checked_for_study(roles: Iterable[str]) -> tuple[Role, ...]:
    """Return roles that can be held in one study; ConfigError names one that cannot."""
    found = checked(roles)
    for role in found:
        if role not in STUDY_ROLES:
            raise ConfigError(
                f"roles: {role} is a role at the hub, not in one study"
                f"{nearest(role, STUDY_ROLES)}"
            )
    return found
