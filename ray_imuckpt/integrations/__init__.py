"""Adapters for frameworks that own the training loop, each in its file, above the public class.

What they reach for inside a framework is kept apart (`…_loops`), with the reason beside it; a
version of the framework that was not tried is refused (`ray_imuckpt.integrations.versions`).
"""
