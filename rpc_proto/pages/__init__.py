"""The built-in pages of a server: health, debug, metrics, and who may see them."""
