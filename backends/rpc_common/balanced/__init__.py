"""Clients of many servers: what all backends share, and what those share that wait in place."""
