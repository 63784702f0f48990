"""Checkpoints that no save has made: damaged, forged."""
