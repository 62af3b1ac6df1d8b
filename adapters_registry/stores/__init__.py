"""Storage of records: the protocols (`base`) and their SQL implementation (`sql`)."""
