"""Benchmarks: ratios measured in one run, beside the peers and the limit."""

import logging

logging.getLogger("ray_imuckpt").setLevel(logging.WARNING)  # a table is shown, not each save
