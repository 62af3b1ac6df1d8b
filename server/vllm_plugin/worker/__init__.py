"""What runs in vLLM's worker process: slots, and the objects that replace vLLM's LoRA layers."""
