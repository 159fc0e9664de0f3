"""Tools: built-in ones, schemas from source, the egress guard. Knows `domain` only; edits leave as data."""
