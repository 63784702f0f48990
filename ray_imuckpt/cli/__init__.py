"""The command ``imuckpt``: a run directory, seen from a terminal. Touches the terminal.

`parser` says which commands there are, `commands` what each one does: compute values (`listing`,
`contents`, `checking`, `pruning`, `exporting`, `comparison`, `series`; `weights` reads for them),
and print them (`text`, `structured`, `terminal`). What computes prints nothing, and what prints
reads no checkpoint. Nothing that imports torch is imported before a command is sure to run.
"""

from ray_imuckpt.cli.dispatch import main

__all__ = ["main"]
