"""Ray. The only room that touches it; reached through `ray_imuckpt.sessions`."""
