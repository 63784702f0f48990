"""The surroundings of a process: script, torchrun, Ray Train, local mode, Tune. Only here: ray."""
