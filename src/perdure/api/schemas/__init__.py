"""Shapes of requests and answers at the HTTP border; the only pydantic models of the program."""
