"""Benchmarks: what dlmon costs the job, beside what else people put into a loop."""
