"""Connections, TLS, pages, backends and sources of nodes, as the options ask for them."""
