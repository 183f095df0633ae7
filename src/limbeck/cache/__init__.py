"""The teacher's outputs on disk: computed once for each augmented view of the images, and read instead of run again.

Right under augmentation, because the augmentation is a function of (seed, view, image): a loader with `views` goes
through the same views again and again, and what is read belongs to the very pixels that the student sees. Stored
features are never cropped or flipped. See docs/decisions/0012-the-teacher-cache.md.
"""

from limbeck.cache.contents import Contents, Reduction
from limbeck.cache.identity import digest_of, key_of, views_of
from limbeck.cache.reader import CachedLoader, TaughtBatch
from limbeck.cache.selftest import Tested, self_test, verify
from limbeck.cache.store import Cache, plan_cache
from limbeck.cache.writer import LiveTeacher, check_room, fill

__all__ = [
    "Cache",
    "CachedLoader",
    "Contents",
    "LiveTeacher",
    "Reduction",
    "TaughtBatch",
    "Tested",
    "check_room",
    "digest_of",
    "fill",
    "key_of",
    "plan_cache",
    "self_test",
    "verify",
    "views_of",
]
