"""Which instances may be trained on, and which are held out for settings (dev) and for reporting (test).

An instance is named by what has to be computed: template and numbers for a word problem (names, objects and verbs
ignored), the program with its names normalised for code. A stable hash of that name puts the instance in one of twenty
buckets; the bucket decides the split, whatever the seed, so no training stream can ever meet an evaluation item.
Left out: near misses. A training instance may differ from an evaluation item in a single number.
"""

import hashlib

BUCKETS = 20
TEST_BUCKET = 0
DEV_BUCKET = 1


def make_key(canonical: str) -> str:
    """Return the 12 hexadecimal digits that name an instance; equal for equal canonical texts on every machine."""
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:12]


def split_of(key: str) -> str:
    """Return "test", "dev" or "train" for a key of `make_key`."""
    return {TEST_BUCKET: "test", DEV_BUCKET: "dev"}.get(int(key, 16) % BUCKETS, "train")
