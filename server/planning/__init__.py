"""From a request to a recipe: catalog, policy decision, near-ties, versions, conversations."""
