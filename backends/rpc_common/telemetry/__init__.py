"""Logs, the access log, and spans."""
