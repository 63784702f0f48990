"""Texts altered where a parser looks, for each parser of what lies on disk."""
