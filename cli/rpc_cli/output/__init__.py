"""The command's output: values, errors, latencies, and what a terminal can show."""
