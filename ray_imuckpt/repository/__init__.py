"""A directory of checkpoints on disk: names, manifests, files, lineage, pointers, retention."""
