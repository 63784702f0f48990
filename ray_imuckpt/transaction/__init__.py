"""A save and a restore, each a short story over the lower rooms.

`save.commit`: write every part → check that what was written is what was planned → manifest.
`restore`: manifest → read and verify → decode → check against every object → apply.
"""
