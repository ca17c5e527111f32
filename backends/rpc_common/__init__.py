"""What the drivers share: nothing here is for users, who import rpc_asyncio and its like."""
