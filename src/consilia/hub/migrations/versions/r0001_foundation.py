"""The first tables: sites and credentials, studies and plans, jobs, versions, audit."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table and index."""
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
    )
    op.create_table(
        "generations",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_generations")),
    )
    op.create_table(
        "plan_sources",
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_plan_sources")),
    )
    op.create_table(
        "sites",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=True),
        sa.Column("advertisement", sa.LargeBinary(), nullable=True),
        sa.Column("advertised", sa.Double(), nullable=True),
        sa.Column("last_seen", sa.Double(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sites")),
    )
    op.create_table(
        "studies",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("author", sa.String(length=100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("changed", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_studies")),
        sa.UniqueConstraint("digest", name=op.f("uq_studies_digest")),
    )
    op.create_index(op.f("ix_studies_state"), "studies", ["state"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_tokens_secret_hash")),
    )
    op.create_index("ix_tokens_created_id", "tokens", ["created", "id"], unique=False)
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("issued", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name=op.f("fk_certificates_site")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_certificates_fingerprint")),
    )
    op.create_index(op.f("ix_certificates_site"), "certificates", ["site"], unique=False)
    op.create_table(
        "invites",
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("used", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name=op.f("fk_invites_site")),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_invites")),
    )
    op.create_index(op.f("ix_invites_site"), "invites", ["site"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("study_digest", sa.String(length=80), nullable=False),
        sa.Column("plan", sa.String(length=80), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan_sources.digest"], name=op.f("fk_jobs_plan")),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name=op.f("fk_jobs_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_created_id", "jobs", ["created", "id"], unique=False)
    op.create_index(
        "ix_jobs_phase_created_id", "jobs", ["phase", "created", "id"], unique=False
    )
    op.create_index(
        "ix_jobs_study_created_id", "jobs", ["study", "created", "id"], unique=False
    )
    op.create_table(
        "plans",
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("author", sa.String(length=100), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["plan_sources.digest"], name=op.f("fk_plans_digest")
        ),
        sa.ForeignKeyConstraint(["study"], ["studies.name"], name=op.f("fk_plans_study")),
        sa.PrimaryKeyConstraint("digest", "study", name=op.f("pk_plans")),
    )
    op.create_index(
        "ix_plans_created_digest_study", "plans", ["created", "digest", "study"], unique=False
    )
    op.create_index("ix_plans_study_created", "plans", ["study", "created"], unique=False)
    op.create_table(
        "journal",
        sa.Column("job", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_journal_job")),
        sa.PrimaryKeyConstraint("job", "seq", name=op.f("pk_journal")),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("job", sa.String(length=40), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.String(length=80), nullable=True),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("study_digest", sa.String(length=80), nullable=False),
        sa.Column("plan", sa.String(length=80), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("sites", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("rejected", sa.Text(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("optimizer", sa.String(length=80), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_versions_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("job", "round", name=op.f("uq_versions_job_round")),
    )
    op.create_index("ix_versions_created_id", "versions", ["created", "id"], unique=False)
    op.create_index(op.f("ix_versions_digest"), "versions", ["digest"], unique=False)


def downgrade() -> None:
    """Drop them, in the opposite order."""
    op.drop_index(op.f("ix_versions_digest"), table_name="versions")
    op.drop_index("ix_versions_created_id", table_name="versions")
    op.drop_table("versions")
    op.drop_table("journal")
    op.drop_index("ix_plans_study_created", table_name="plans")
    op.drop_index("ix_plans_created_digest_study", table_name="plans")
    op.drop_table("plans")
    op.drop_index("ix_jobs_study_created_id", table_name="jobs")
    op.drop_index("ix_jobs_phase_created_id", table_name="jobs")
    op.drop_index("ix_jobs_created_id", table_name="jobs")
    op.drop_table("jobs")
    op.drop_index(op.f("ix_invites_site"), table_name="invites")
    op.drop_table("invites")
    op.drop_index(op.f("ix_certificates_site"), table_name="certificates")
    op.drop_table("certificates")
    op.drop_index("ix_tokens_created_id", table_name="tokens")
    op.drop_table("tokens")
    op.drop_index(op.f("ix_studies_state"), table_name="studies")
    op.drop_table("studies")
    op.drop_table("sites")
    op.drop_table("plan_sources")
    op.drop_table("generations")
    op.drop_table("audit")
