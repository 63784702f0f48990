"""Work on plain threads. No collective runs on any of them."""
