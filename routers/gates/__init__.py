"""Gates: weights over a recipe's experts from a token's input. One file a method; `base` has the interface."""
