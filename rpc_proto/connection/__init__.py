"""The two ends of a connection, and the server's port: pure state machines."""
