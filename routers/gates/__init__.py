"""Gates: from a token's input to weights over a recipe's experts. One file a method; `base` has the seam."""
