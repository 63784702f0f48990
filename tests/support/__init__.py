"""What tests share, by the role that it plays.

- `gangs`: what the ranks of a gang do, in processes of their own.
- `runs`: programs that train, and are killed or interrupted while they do.
- `faults`: stories of training, what can go wrong in them, and what must hold afterwards.
- `disk`: a model of a file system that knows what a crash leaves.
- `damage`, `fuzz`: what lies on disk and no save has made; texts altered where a parser looks.
- `programs`, `forking`, `logs`: processes of their own, and what they log.
- `waiting`, `round_trips`: waits and counts that do not depend on how fast the machine is.
- `documents`, `schema`, `plateaus`, `trees`, `wrappers`: readers, references and stand-ins.
"""
