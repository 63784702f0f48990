"""What must be the same on every rank of a gang, compared before anything is saved or restored."""
