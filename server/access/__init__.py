"""Who may send requests: API keys, their limits, and the bounded queue."""
