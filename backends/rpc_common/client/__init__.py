"""The part of a client that no runtime changes."""
