"""Published figures, recomputed and held against what was published."""
