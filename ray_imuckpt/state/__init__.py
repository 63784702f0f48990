"""Taking state out of live objects and putting it back: model, optimizer, random generators.

Touches torch, numpy and random. No I/O, and no copies: what is taken shares memory with the live
objects (except sharded tensors, which are gathered). Every ``check_…`` only looks and every
``apply_…`` changes, so that nothing is changed unless everything fits.
"""
