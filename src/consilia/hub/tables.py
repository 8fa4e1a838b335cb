"""The hub's database: one definition for SQLite and PostgreSQL. Times are Unix seconds.

A change here needs a migration (hub/migrations), and `HEAD` names the newest one; a test
compares the two. Documents (experiments, studies, plans) are JSON text of their wire
records, so a new optional field needs no migration. Every list endpoint has its index.
"""

import sqlalchemy as sa

HEAD = "r0008"  # the migration that makes exactly these tables

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Counters that tell other processes, and nodes, that something they cache has changed.
generations = sa.Table(
    "generations",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),  # "access", "catalogue"
    sa.Column("value", sa.BigInteger, nullable=False),
)

leases = sa.Table(  # which of several hubs works; see hub.replica
    "leases",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),  # one more with every holder
    sa.Column("holder", sa.String(63), nullable=False),
    sa.Column("until", sa.Double, nullable=False),  # by the database's clock
    sa.Column("people", sa.String(300), nullable=False),  # host:port of the holder
    sa.Column("nodes", sa.String(300), nullable=False),
)

repeats = sa.Table(  # answers to requests with an Idempotency-Key; see hub.rest.repeats
    "repeats",
    metadata,
    sa.Column("person", sa.String(100), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),  # a hash of what they chose
    sa.Column("asked", sa.String(64), nullable=False),  # a hash of the whole request
    sa.Column("answer", sa.LargeBinary, nullable=False),  # status and body
    sa.Column("at", sa.Double, nullable=False),
    sa.Index("ix_repeats_at", "at"),
)

sites = sa.Table(
    "sites",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),  # invited, enrolled, revoked
    sa.Column("signing_key", sa.LargeBinary),  # Ed25519 public key, 32 bytes
    sa.Column("advertisement", sa.LargeBinary),  # msgpack of wire.v1.Advertisement
    sa.Column("advertised", sa.Double),
    sa.Column("last_seen", sa.Double),
    sa.Column("created", sa.Double, nullable=False),
)

mirrors = sa.Table(
    "mirrors",
    metadata,
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),  # msgpack of the Sealed it sent
)

withdrawals = sa.Table(  # of sites from studies that they had accepted
    "withdrawals",
    metadata,
    sa.Column("site", sa.String(63), primary_key=True),
    sa.Column("study_digest", sa.String(80), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),  # lower-case hex
    sa.Column("fingerprint", sa.String(64), nullable=False, unique=True),  # SHA-256 of DER
    sa.Column("site", sa.ForeignKey("sites.name"), nullable=False, index=True),
    sa.Column("issued", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("revoked", sa.Double),
)

invites = sa.Table(
    "invites",
    metadata,
    sa.Column("secret_hash", sa.String(64), primary_key=True),  # SHA-256, hex
    sa.Column("site", sa.ForeignKey("sites.name"), nullable=False, index=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("used", sa.Double),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),  # see hub.rest.guard
    sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("revoked", sa.Double),
    sa.Column("owner", sa.String(63)),  # the person it speaks for; None: made by an operator
    sa.Column("roles", sa.Text),  # JSON, of an owned key: at most these of the owner's
    sa.Column("study", sa.String(63)),  # the one study it may touch; None: all of the owner's
    sa.Index("ix_tokens_created_id", "created", "id"),
    sa.Index("ix_tokens_owner", "owner"),
)

people = sa.Table(  # accounts; one that was removed keeps its name, which nobody gets again
    "people",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),  # password, oidc, ldap
    sa.Column("provider", sa.String(63), nullable=False),  # which directory; "password"
    sa.Column("subject", sa.String(255)),  # who they are there, for ever
    sa.Column("password", sa.Text, nullable=False),  # argon2id; "": none can be used
    sa.Column("roles", sa.Text, nullable=False),  # JSON, at the hub
    sa.Column("site", sa.String(63)),  # a data manager's own
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),  # who let them in
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("removed", sa.Double),
    sa.Column(
        "secret", sa.String(64), nullable=False
    ),  # second factor, sealed (people.factors); "": none
    sa.Column("proposed", sa.String(64), nullable=False),  # one not confirmed yet
    sa.Column("step", sa.BigInteger, nullable=False),  # of the code used last
    sa.Column("last", sa.Double),  # signed in
    sa.Column("epoch", sa.BigInteger, nullable=False),  # sessions of an earlier one have ended
    sa.UniqueConstraint("provider", "subject"),
)

study_roles = sa.Table(
    "study_roles",
    metadata,
    sa.Column("person", sa.ForeignKey("people.name"), primary_key=True),
    sa.Column("study", sa.ForeignKey("studies.name"), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
)

sessions = sa.Table(  # of people: one row from sign-in to its end
    "sessions",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("person", sa.ForeignKey("people.name"), nullable=False, index=True),
    sa.Column("token_hash", sa.String(64), nullable=False),  # of the refresh token in force
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("seen", sa.Double, nullable=False),  # last refresh
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

attempts = sa.Table(  # wrong passwords and codes, by account and by address
    "attempts",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),  # a hash: people type passwords here
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False, index=True),
)

invitations = sa.Table(  # that may still be accepted
    "invitations",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("secret_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(63)),  # whose account it makes, or opens again; None: theirs
    sa.Column("roles", sa.Text, nullable=False),  # JSON
    sa.Column("study", sa.String(63)),  # that the roles are for; None: the hub
    sa.Column("site", sa.String(63)),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)

access_requests = sa.Table(
    "access_requests",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("person", sa.ForeignKey("people.name"), nullable=False, index=True),
    sa.Column("study", sa.String(63)),  # None: a role at the hub
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # open, granted, refused
    sa.Column("decided_by", sa.String(100)),
    sa.Column("decided", sa.Double),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Index("ix_access_requests_created_id", "created", "id"),
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),  # wire.v1.Study
    sa.Column("digest", sa.String(80), unique=True),  # None while a draft
    sa.Column("state", sa.String(16), nullable=False, index=True),  # draft, submitted, closed
    sa.Column("author", sa.String(100), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("changed", sa.Double, nullable=False),
)

earlier_terms = sa.Table(  # of studies whose author has offered changed ones since
    "earlier_terms",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("study", sa.String(63), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),  # wire.v1.Study
    sa.Column("replaced", sa.Double, nullable=False),
)

plan_sources = sa.Table(
    "plan_sources",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),  # wire.v1.Plan
)

plans = sa.Table(  # a plan offered to a study; one source may be offered to several
    "plans",
    metadata,
    sa.Column("digest", sa.ForeignKey("plan_sources.digest"), primary_key=True),
    sa.Column("study", sa.ForeignKey("studies.name"), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("author", sa.String(100), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Index("ix_plans_created_digest_study", "created", "digest", "study"),
    sa.Index("ix_plans_study_created", "study", "created"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("study", sa.ForeignKey("studies.name"), nullable=False),
    sa.Column("study_digest", sa.String(80), nullable=False),
    sa.Column("plan", sa.ForeignKey("plan_sources.digest"), nullable=False),
    sa.Column("experiment", sa.Text, nullable=False),  # wire.people.Experiment
    sa.Column("author", sa.String(100), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),  # core.round Phase
    sa.Column("cause", sa.Text, nullable=False),
    sa.Index("ix_jobs_created_id", "created", "id"),
    sa.Index("ix_jobs_study_created_id", "study", "created", "id"),
    sa.Index("ix_jobs_phase_created_id", "phase", "created", "id"),
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("job", sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # 1, 2, ... per job
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("type", sa.String(32), nullable=False),  # class name of the core.round event
    sa.Column("body", sa.Text, nullable=False),  # JSON of its fields
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", sa.String(60), primary_key=True),  # <job>.<round>
    sa.Column("job", sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(80), nullable=False, index=True),  # of the frame
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("parent", sa.String(80)),  # version id or frame digest it was trained from
    sa.Column("study", sa.String(63), nullable=False),
    sa.Column("study_digest", sa.String(80), nullable=False),
    sa.Column("plan", sa.String(80), nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),  # these five are JSON
    sa.Column("strategy", sa.Text, nullable=False),
    sa.Column("sites", sa.Text, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("rejected", sa.Text, nullable=False),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Column("optimizer", sa.String(80)),  # digest of the strategy's state, if it has any
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("bytes_in", sa.BigInteger, nullable=False),
    sa.Column("bytes_out", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("deleted", sa.Double),  # when retention gave its frame up
    sa.UniqueConstraint("job", "round"),
    sa.Index("ix_versions_created_id", "created", "id"),
    sa.Index("ix_versions_study_created_id", "study", "created", "id"),
    sa.Index("ix_versions_optimizer", "optimizer"),
)

stages = sa.Table(  # what people decided of a model version, one row for each decision
    "stages",
    metadata,
    sa.Column("model", sa.ForeignKey("versions.id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),  # 1, 2, ... per model
    sa.Column("stage", sa.String(16), nullable=False),  # candidate, released, retired
    sa.Column("current", sa.Boolean, nullable=False),  # no later row of this model
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("ix_stages_stage_current", "stage", "current"),
)

uploads = sa.Table(  # base frames that people have sent
    "uploads",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("author", sa.String(100), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),  # 1, 2, ...
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),  # core.chain link to the line before
    sa.Index("ix_audit_subject_seq", "subject", "seq"),
)
