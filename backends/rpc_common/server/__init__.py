"""What the servers of all backends share."""
