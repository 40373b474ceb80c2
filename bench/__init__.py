"""Benchmarks: ratios taken side by side in one run, never a timed assertion."""
