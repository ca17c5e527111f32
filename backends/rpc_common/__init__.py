"""What the drivers share. Internal: users import rpc_asyncio, rpc_gevent or rpc_blocking."""
