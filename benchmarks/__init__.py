"""Benchmarks: ratios measured in one run, beside the peers and the limit."""
