"""Streams of items: the two halves of a call, and what a connection does for them."""
