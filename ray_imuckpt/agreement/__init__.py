"""The comparison of what all ranks should hold alike, by digests."""
