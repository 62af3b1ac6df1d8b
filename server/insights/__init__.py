"""Views of the gateway for people: overview, map of examples, leaderboard."""
