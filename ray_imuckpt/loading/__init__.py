"""A restore: select → open → check → fill → apply, and the way back where that fails."""
