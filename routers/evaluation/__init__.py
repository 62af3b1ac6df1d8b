"""How good answers and decisions are, and what a decision costs."""
