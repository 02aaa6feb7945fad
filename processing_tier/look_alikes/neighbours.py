"""All pairs of hashes that differ in few bits, without comparing each with each.

Multi-index hashing (Norouzi, Punjani and Fleet 2012): the bits are dealt into chunks. Two hashes within `MAX_DISTANCE`
differ in at most `MAX_DISTANCE // CHUNKS` bits of at least one chunk, so only hashes that nearly agree in a chunk are
compared. The result is exact.
"""

from collections.abc import Iterator

import numpy as np

MAX_DISTANCE = 24  # bits of 255 in which copies differ at most; see docs/look_alikes.md

CHUNKS = 13  # so that one chunk of near hashes differs in at most one bit

AT_ONCE = 1_000_000  # candidates in memory

BITS = np.array([bin(value).count("1") for value in range(2**16)], dtype=np.uint8)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits in which two rows of hashes differ, (n,), from (n, bytes) uint8 each; the bytes are even in number."""
    return BITS[(first ^ second).view(np.uint16)].sum(axis=1, dtype=np.int64)


def near_pairs(hashes: np.ndarray, most: int = 500_000) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        hashes (`np.ndarray`): (n, bytes) uint8, all different.
        most (`int`, *optional*, defaults to 500,000):
            The search ends when it has found more pairs than this. It bounds the memory; the other pairs are missing.

    Returns:
        `(pairs, distances)`: (pairs, 2) int64, the first lower than the second, in ascending order; and the bits in
        which they differ, 1 to `MAX_DISTANCE`.
    """
    bits = np.unpackbits(hashes, axis=1)
    code = np.zeros(0, dtype=np.int64)
    for chunk in range(CHUNKS):
        own = bits[:, chunk::CHUNKS]
        keys = own @ (1 << np.arange(own.shape[1], dtype=np.int64))
        for first, second in candidates(keys, own.shape[1]):
            kept = distances(hashes[first], hashes[second]) <= MAX_DISTANCE
            low, high = np.minimum(first[kept], second[kept]), np.maximum(first[kept], second[kept])
            if len(low):
                code = np.union1d(code, low * len(hashes) + high)
            if len(code) > most:
                break
        if len(code) > most:
            break
    pairs = np.stack([code // max(len(hashes), 1), code % max(len(hashes), 1)], axis=1)
    return pairs, distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])


def candidates(keys: np.ndarray, num_bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose keys (n,) differ in at most one bit, each once, `AT_ONCE` or a few more at a time."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    place = np.arange(len(keys))
    for flipped in (0, *(1 << np.arange(num_bits, dtype=np.int64))):
        if flipped:  # each pair from its member without the bit
            asking = place[(ordered & flipped) == 0]
            start = np.searchsorted(ordered, ordered[asking] | flipped)
            stop = np.searchsorted(ordered, ordered[asking] | flipped, side="right")
        else:
            asking, start = place, place + 1
            stop = np.searchsorted(ordered, ordered, side="right")
        counts = stop - start
        for rows in cut(counts):
            members = np.repeat(asking[rows], counts[rows])
            ends = np.cumsum(counts[rows])
            others = np.arange(len(members)) - np.repeat(ends - counts[rows] - start[rows], counts[rows])
            yield order[members], order[others]


def cut(counts: np.ndarray) -> Iterator[slice]:
    """Slices of rows whose counts sum up to `AT_ONCE`, or that are a single row."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + AT_ONCE, side="right")), start + 1)
        if ends[stop - 1] > before:
            yield slice(start, stop)
        start = stop
