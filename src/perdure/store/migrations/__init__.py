"""Numbered steps from an empty database to the tables of `schema.py`. Alembic reads them; nothing else imports them."""
