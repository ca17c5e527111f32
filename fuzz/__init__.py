"""Properties that hold for all bytes, values and orders of events."""
