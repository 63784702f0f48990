"""The surroundings of a process: script, torchrun, Ray Train, Ray Tune. Only here: ray."""
