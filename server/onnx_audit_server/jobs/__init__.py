"""Durable jobs: the workflow of an audit, and the isolated processes that do its work."""
