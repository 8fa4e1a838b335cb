"""Hubs that stand in for each other; requests that may be repeated."""

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision = "r0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=63), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("people", sa.String(length=300), nullable=False),
        sa.Column("nodes", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "repeats",
        sa.Column("person", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("asked", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("person", "key", name=op.f("pk_repeats")),
    )
    op.create_index("ix_repeats_at", "repeats", ["at"])


def downgrade() -> None:
    """Forget them."""
    op.drop_table("repeats")
    op.drop_table("leases")
