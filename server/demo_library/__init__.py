"""The demo library: ten small experts with cards and examples, and prompts to compare policies on. Data only.

`examples/demo_library` has the programs that train and score it.
"""
