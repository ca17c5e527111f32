"""What a server does with calls, whatever runs it, and what a client shows of a service."""
