"""Clients of many servers: what all backends share, and what gevent and blocking share."""
