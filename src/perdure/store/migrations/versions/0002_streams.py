"""The run log, the line of runs that wait, workers that beat, the callers' own ids, and callbacks that are due."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT, LONG = sa.Text(), sa.BigInteger()


def upgrade() -> None:
    """Open runs become runs of nobody, which whoever starts next ends.

    Columns are added and dropped in place, on SQLite too: rebuilding `runs` there would forget which numbers it gave.
    """
    _workers()
    _runs()
    _otids()
    _frames()


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", TEXT, nullable=False), sa.Column("heartbeat_at", LONG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )  # fmt: skip


def _runs() -> None:
    op.drop_index("uq_runs_lease", "runs")
    op.execute("UPDATE runs SET status = 'running' WHERE status = 'created'")  # it held its context, nobody waited
    op.drop_column("runs", "heartbeat_at")
    op.add_column("runs", sa.Column("worker", TEXT, nullable=False, server_default=""))
    op.add_column("runs", sa.Column("callback_at", LONG, nullable=True))
    op.add_column("runs", sa.Column("waiting_order", TEXT, nullable=True))
    _partial("uq_runs_lease", ["context_id"], "status = 'running'", unique=True)
    _partial("ix_runs_line", ["context_id", "sequence"], "status = 'created'")
    _partial("ix_runs_callback_at", ["callback_at"], "callback_at IS NOT NULL")


def _partial(name: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, "runs", columns, unique=unique, postgresql_where=where, sqlite_where=where)


def _otids() -> None:
    op.create_table(
        "run_otids",
        sa.Column("run_id", TEXT, nullable=False), sa.Column("otid", TEXT, nullable=False),
        sa.Column("tenant_id", TEXT, nullable=False), sa.Column("context_id", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "otid", name="pk_run_otids"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_otids_run_id", ondelete="CASCADE"),
    )  # fmt: skip
    op.create_index("ix_run_otids_context_id_otid", "run_otids", ["context_id", "otid"])


def _frames() -> None:
    op.create_table(
        "run_frames",
        sa.Column("run_sequence", LONG, nullable=False), sa.Column("first", LONG, nullable=False),
        sa.Column("tenant_id", TEXT, nullable=False), sa.Column("count", LONG, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_sequence", "first", name="pk_run_frames"),
        sa.ForeignKeyConstraint(
            ["run_sequence"], ["runs.sequence"], name="fk_run_frames_run_sequence", ondelete="CASCADE"
        ),
    )  # fmt: skip
