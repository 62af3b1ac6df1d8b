"""Records that are kept after a request has ended: decisions, feedback, abstentions."""
