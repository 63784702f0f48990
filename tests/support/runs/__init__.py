"""Programs that train, and are killed or interrupted while they do."""
