"""The database: one set of statements for SQLite and PostgreSQL. Knows `domain` only.

`open_store(url)` is the door. One file per kind of record holds its statements; `database.py` has the threads they
run on, `sqlite.py` and `postgres.py` what differs, `schema.py` the tables, `migrations/` the way to them.
"""

from perdure.store.open import SqlStore, open_store

__all__ = ["SqlStore", "open_store"]
