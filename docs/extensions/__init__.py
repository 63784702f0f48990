"""What Sphinx does for this site beside its own: each module says what it adds."""
