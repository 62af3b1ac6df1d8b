"""What runs in vLLM's API server process: recipes become LoRARequests."""
