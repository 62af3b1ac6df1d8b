"""Mathematics that several methods share, on plain arrays."""
