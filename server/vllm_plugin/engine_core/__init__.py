"""What runs in vLLM's engine core process: scheduling requests by their experts' slots."""
