"""The part of a server that no runtime changes."""
