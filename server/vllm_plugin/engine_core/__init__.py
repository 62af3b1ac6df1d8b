"""What runs in vLLM's engine core process: requests are scheduled by their experts' slots."""
