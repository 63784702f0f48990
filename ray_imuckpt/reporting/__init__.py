"""The log of a run: what it continues from, what was committed, what nobody saves."""
