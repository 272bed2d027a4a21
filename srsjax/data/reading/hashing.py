"""64-bit hashes of table columns, which identify keys, impressions, duplicates and users.

Multilinear hashing of the UTF-8 bytes (Lemire & Kaser 2014, "Strongly universal string hashing is fast") with fixed
multipliers and a final mix, so that a hash is the same on every machine and in every run. The probability of any
collision among n distinct values is about n^2 / 2^65: 3e-6 for ten million, 3e-4 for a hundred million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Bytes hashed at a time: each takes 24 bytes of working memory, which should fit in the processor's cache.
BLOCK_BYTES = 1 << 16
NULL = np.uint64(0x6E756C6C)


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Hashes of a string column, or of bytes, [n] uint64; all nulls have one hash, different from that of any text."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    of_bytes = pa.types.is_binary(texts.type) or pa.types.is_large_binary(texts.type)
    texts = texts.cast(pa.large_binary() if of_bytes else pa.large_string())
    null = np.asarray(texts.is_null())
    texts = pc.fill_null(texts, b"" if of_bytes else "")
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    sums = np.zeros(len(texts), np.uint64)
    start = 0
    while start < len(texts):
        stop = max(int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES, side="right")) - 1, start + 1)
        sums[start:stop] = _sums_of_bytes(data, offsets[start : stop + 1])
        start = stop
    return np.where(null, NULL, mix(sums + np.diff(offsets).astype(np.uint64)))


def _sums_of_bytes(data: pa.Buffer, offsets: np.ndarray) -> np.ndarray:
    """Sums over the bytes of each text of (byte + 1) times the multiplier of its position."""
    lengths = np.diff(offsets)
    if not lengths.any():
        return np.zeros(len(lengths), np.uint64)
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    place = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    values *= _multipliers(int(lengths.max()))[place]
    return _segment_sums(values, offsets - offsets[0])


def pseudonyms(texts: pa.Array, secret: bytes) -> pa.Array:
    """Keyed hashes of a string column as texts of 16 hex digits, [n] large_string, null where null: BLAKE2b (RFC 7693)
    with the key `secret`, 64 bits of it."""
    coded = texts.cast(pa.large_string()).dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    key = hashlib.blake2b(secret).digest()  # secrets may be longer than keys
    hashed = [
        hashlib.blake2b(each.encode(), digest_size=8, key=key).hexdigest() for each in coded.dictionary.to_pylist()
    ]
    return pa.array(hashed, pa.large_string()).take(coded.indices)


def hash_column(column: pa.Array) -> np.ndarray:
    """Hashes of a column of texts, lists or structs of them, or any type with a text form, [n] uint64."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_map(column.type):
        kind = column.type
        column = column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return hash_texts(column)
    if pa.types.is_struct(column.type):
        return combine([hash_column(part) for part in column.flatten()])
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = hash_column(pc.list_flatten(column))
        values *= _multipliers(int(lengths.max(initial=0)))[np.arange(len(values)) - np.repeat(offsets[:-1], lengths)]
        return mix(_segment_sums(values, offsets) + lengths.astype(np.uint64))
    return hash_texts(column if pa.types.is_large_string(column.type) else column.cast(pa.string()))


def hash_lists(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Hashes of lists of integers >= 0, `values[offsets[i]:offsets[i + 1]]`, [n] uint64."""
    sums, start = np.zeros(len(offsets) - 1, np.uint64), 0
    while start < len(sums):
        stop = max(int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES, side="right")) - 1, start + 1)
        own = np.asarray(offsets[start : stop + 1], np.int64)
        numbers = mix(np.asarray(values[own[0] : own[-1]]).astype(np.uint64) + np.uint64(1))
        lengths = np.diff(own)
        numbers *= _multipliers(int(lengths.max()))[np.arange(len(numbers)) - np.repeat(own[:-1] - own[0], lengths)]
        sums[start:stop] = _segment_sums(numbers, own - own[0])
        start = stop
    return mix(sums + np.diff(offsets).astype(np.uint64))


def combine(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One hash for several columns, in their order, [n] uint64."""
    total = np.zeros_like(parts[0])
    for part, multiplier in zip(parts, _multipliers(len(parts)), strict=True):
        total += mix(part) * multiplier
    return mix(total)


def uniform(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1), float64, that are independent between seeds."""
    salt = mix(np.array([seed + 1], np.uint64))
    return (mix(hashes + salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every input bit affects every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _multipliers(count: int) -> np.ndarray:
    """Odd multipliers of positions 0, 1, ... (SplitMix64's sequence)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(steps) | np.uint64(1)


def _segment_sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums modulo 2^64 of values[offsets[i]:offsets[i + 1]]; unlike reduceat, correct for empty segments."""
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return running[offsets[1:]] - running[offsets[:-1]]
