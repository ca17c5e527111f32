"""A server's built-in pages: health, debug, metrics, and access to them."""
