"""Running the machines of rpc_discovery: requests, files, registrations."""
