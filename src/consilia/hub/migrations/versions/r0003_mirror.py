"""The mirror of each site's privacy ledger: what it last signed of its head."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "mirrors",
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("site", name=op.f("pk_mirrors")),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("mirrors")
