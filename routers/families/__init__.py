"""Code that several routing methods share: scoring, calibration, tables of scores, static mixes."""
