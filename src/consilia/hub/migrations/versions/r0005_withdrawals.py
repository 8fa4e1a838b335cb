"""Which sites have left which studies."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "withdrawals",
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("study_digest", sa.String(length=80), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("site", "study_digest", name=op.f("pk_withdrawals")),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("withdrawals")
