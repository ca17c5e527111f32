"""The `rpc-proto` command."""
