"""Saves to and restores from an object store, beside the peers and beside the raw engine.

The store is simulated (`tools.simulated_store`): so many milliseconds before each answer, so many
megabytes a second of each connection. Its process takes part of the same processors, which is why
the raw engine is measured beside what connections and rate would allow.
"""
