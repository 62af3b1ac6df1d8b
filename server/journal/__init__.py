"""Records of requests that outlive them: decisions, feedback, abstentions."""
