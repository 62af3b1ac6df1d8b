"""The gateway: HTTP API, request pipeline, engine pool, metrics, keys and the command line."""
