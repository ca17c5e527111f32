"""Whether an implementation does what docs/protocol.md says: named cases for live peers."""
