"""Sockets, TLS, proxies, threads and processes, as the drivers need them."""
