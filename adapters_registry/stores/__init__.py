"""Where records are kept: the protocols (`base`) and their SQL implementation (`sql`)."""
