"""What every storage promises, tried on each backend, and looked at past the storage itself."""
