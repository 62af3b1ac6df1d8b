"""Gates: how a token's input becomes weights over a recipe's experts. One file a method; `base` has the seam."""
