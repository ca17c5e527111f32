"""What an operator reads: logs, the access log, spans."""
