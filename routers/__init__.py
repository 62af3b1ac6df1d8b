"""Pure decision code: from a query to a decision, with no network, no event loop and no engine."""
