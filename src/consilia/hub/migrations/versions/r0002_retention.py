"""Retention: versions whose frame is gone, and who uploaded which base frame."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

# Until now the audit trail alone knew of uploads: actor "user:<name>", detail the bytes.
_KNOWN = """
INSERT INTO uploads (digest, author, bytes, at)
SELECT subject, substr(actor, 6), max(CAST(detail AS BIGINT)), max(at)
FROM audit WHERE action = 'frame.upload' GROUP BY subject, substr(actor, 6)
"""


def upgrade() -> None:
    """Add the column, the index of lists by study, and the table with what is known."""
    op.add_column("versions", sa.Column("deleted", sa.Double(), nullable=True))
    op.create_index("ix_versions_study_created_id", "versions", ["study", "created", "id"])
    op.create_index("ix_versions_optimizer", "versions", ["optimizer"])
    op.create_table(
        "uploads",
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("author", sa.String(length=100), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "author", name=op.f("pk_uploads")),
    )
    op.execute(_KNOWN)


def downgrade() -> None:
    """Forget them."""
    op.drop_table("uploads")
    op.drop_index("ix_versions_optimizer", table_name="versions")
    op.drop_index("ix_versions_study_created_id", table_name="versions")
    with op.batch_alter_table("versions") as versions:
        versions.drop_column("deleted")
