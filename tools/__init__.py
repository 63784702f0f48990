"""Tools that tests and benchmarks share, and no user installs."""
