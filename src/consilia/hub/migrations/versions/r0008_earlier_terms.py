"""Terms of studies that were replaced by changed ones."""

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "earlier_terms",
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("study", sa.String(length=63), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("replaced", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_earlier_terms")),
    )
    op.create_index("ix_earlier_terms_study", "earlier_terms", ["study"])


def downgrade() -> None:
    """Forget them: the audit trail still says what changed."""
    op.drop_index("ix_earlier_terms_study", table_name="earlier_terms")
    op.drop_table("earlier_terms")
