"""A model of a file system that knows what a crash leaves, and a recorder of what is done to it."""
