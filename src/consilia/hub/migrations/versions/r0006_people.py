"""People: accounts, their roles, sessions, invitations, access requests, keys of their own."""

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; API tokens that are there stay what they are."""
    op.add_column("tokens", sa.Column("owner", sa.String(length=63), nullable=True))
    op.add_column("tokens", sa.Column("roles", sa.Text(), nullable=True))
    op.add_column("tokens", sa.Column("study", sa.String(length=63), nullable=True))
    op.create_index("ix_tokens_owner", "tokens", ["owner"])
    _people()
    _sessions()
    _doors()


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=True),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("removed", sa.Double(), nullable=True),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("proposed", sa.String(length=64), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.Double(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_people")),
        sa.UniqueConstraint("provider", "subject", name=op.f("uq_people_provider_subject")),
    )
    op.create_table(
        "study_roles",
        sa.Column("person", sa.String(length=63), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["person"], ["people.name"], name=op.f("fk_study_roles_person")
        ),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name=op.f("fk_study_roles_study")),
        sa.PrimaryKeyConstraint("person", "study", "role", name=op.f("pk_study_roles")),
    )


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("person", sa.String(length=63), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name=op.f("fk_sessions_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index("ix_sessions_person", "sessions", ["person"])
    op.create_table(
        "attempts",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_attempts")),
    )
    op.create_index("ix_attempts_at", "attempts", ["at"])


def _doors() -> None:
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=True),
        sa.Column("site", sa.String(length=63), nullable=True),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_invitations_secret_hash")),
    )
    op.create_table(
        "access_requests",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("person", sa.String(length=63), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("decided_by", sa.String(length=100), nullable=True),
        sa.Column("decided", sa.Double(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["person"], ["people.name"], name=op.f("fk_access_requests_person")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_requests")),
    )
    op.create_index("ix_access_requests_person", "access_requests", ["person"])
    op.create_index("ix_access_requests_created_id", "access_requests", ["created", "id"])


def downgrade() -> None:
    """Forget the people. Keys with an owner are voided: an older hub would trust them more."""
    op.execute("UPDATE tokens SET revoked = created WHERE owner IS NOT NULL")
    for table in ("access_requests", "invitations", "attempts", "sessions", "study_roles"):
        op.drop_table(table)
    op.drop_table("people")
    op.drop_index("ix_tokens_owner", table_name="tokens")
    with op.batch_alter_table("tokens") as tokens:
        tokens.drop_column("study")
        tokens.drop_column("roles")
        tokens.drop_column("owner")
