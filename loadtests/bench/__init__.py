"""Parts of the gateway's benchmark. Speaks HTTP only and imports nothing of what it measures."""
