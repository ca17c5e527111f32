"""The two ends of a connection, and the port that a server puts behind each: pure machines."""
