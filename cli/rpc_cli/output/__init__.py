"""What the command prints: values, errors, latencies, and what a terminal can show."""
