"""What runs in vLLM's worker process: experts in slots, and the objects that replace vLLM's LoRA layers."""
