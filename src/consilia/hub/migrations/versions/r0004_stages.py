"""What people decided of model versions, and the trail by what it is about."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "stages",
        sa.Column("model", sa.String(length=60), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["versions.id"], name=op.f("fk_stages_model")),
        sa.PrimaryKeyConstraint("model", "seq", name=op.f("pk_stages")),
    )
    op.create_index("ix_stages_stage_current", "stages", ["stage", "current"])
    op.create_index("ix_audit_subject_seq", "audit", ["subject", "seq"])


def downgrade() -> None:
    """Forget the decisions."""
    op.drop_index("ix_audit_subject_seq", table_name="audit")
    op.drop_index("ix_stages_stage_current", table_name="stages")
    op.drop_table("stages")
