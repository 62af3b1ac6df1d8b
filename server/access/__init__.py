"""Access: API keys and their limits, and the permits of running requests."""
