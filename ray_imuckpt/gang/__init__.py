"""The processes that train together, and their meetings. The room that touches torch.distributed.

(`ray_imuckpt.state` does so as well where a state is sharded.)
"""

from ray_imuckpt.gang.gang import Gang, current, own_rank

__all__ = ["Gang", "current", "own_rank"]
