"""Coverage-guided fuzzing of the pure core: python -m rpc_fuzz.guided TARGET [CORPUS] [OPTIONS]."""
