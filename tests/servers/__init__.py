"""Servers that tests talk to, on the loopback, and what guards that nothing goes beyond it."""
