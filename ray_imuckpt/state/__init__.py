"""State of live objects, taken and applied: model, optimizer, other objects, random generators.

Touches torch, numpy and random. No I/O, and no copies: what is taken shares memory with the live
objects (except sharded tensors, which are gathered). Whatever is called check only looks, and what
is called apply changes, so that nothing is changed unless everything fits.
"""
