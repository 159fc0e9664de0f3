"""What Alembic runs: the steps on the connection that `upgrade.py` hands over, inside its transaction."""

from alembic import context

from perdure.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
