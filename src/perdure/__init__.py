"""Perdure: a server for stateful LLM agents that speaks the Letta REST API."""

__version__ = "0.1.0"
