"""Faults: stories of training, what can go wrong in them, and what must hold afterwards."""
