"""A save and a restore, each a short story over the lower rooms.

A save: `gang` captures → `save` writes every part, checks that what was written is what was
planned, and commits. A restore: `resume` picks → `restore` opens, `reading` verifies → `putback`
checks against every object, and puts the bytes into them.
"""
