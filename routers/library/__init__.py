"""The library as fitters see it: example prompts, labelled samples, subsets of experts."""
