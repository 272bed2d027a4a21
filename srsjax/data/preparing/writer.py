"""Writing a token store, chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srsjax.config import Feature
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import of_kind
from srsjax.data.preparing.encode import Encoded
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import SPLITS, ArrayWriter, Items, RaggedWriter, Split
from srsjax.data.store.ragged import Ragged


class StoreWriter:
    """Appends encoded rows to the splits of a store, and their items unless these are the rows of a catalogue."""

    def __init__(self, folder: Path, sources: Sources, items: Items | None):
        """`items`: the store's items if they are the rows of a catalogue, else None."""
        self._splits = [_SplitWriter(folder / name, sources) for name in SPLITS]
        self._tokens = RaggedWriter(folder / "items" / "tokens")
        self._items = 0
        self._shared = items is not None
        self.cut: Counter[str] = Counter()
        """What was cut, by feature (`Encoded.cut`)."""
        self.unseen: Counter[str] = Counter()
        """Labels of classes that no training row has (`Encoded.unseen`)."""
        if items:
            self._append_tokens(items.tokens)
            for name, values in items.features.items():
                writer = ArrayWriter(folder / "items" / "features" / f"{name}.npy", values.dtype, values.shape[1:])
                writer.append(values)
                writer.close()

    def append(self, split: int, encoded: Encoded) -> None:
        """Appends whole impressions to a split (0 train, 1 valid, 2 test)."""
        self._splits[split].append(encoded.split, 0 if self._shared else self._items)
        if not self._shared:
            self._append_tokens(encoded.items.tokens)
        self.cut += encoded.cut
        self.unseen += encoded.unseen

    def close(self) -> None:
        """Completes all files."""
        self._tokens.close()
        for split in self._splits:
            split.close()

    def _append_tokens(self, tokens: Ragged) -> None:
        self._tokens.append(tokens)
        self._items += len(tokens)


class _SplitWriter:
    def __init__(self, folder: Path, sources: Sources):
        tasks = (len(sources.schema.tasks),)
        kinds = {"candidates": (np.int64, ()), "item": (np.int64, ()), "labels": (np.float32, tasks)}
        kinds |= {"weights": (np.float32, tasks), "example": (np.int64, ()), "user": (np.int64, ())}
        kinds |= {"oracle": (np.float32, ())} if sources.data.oracle else {}
        self.arrays = {name: ArrayWriter(folder / f"{name}.npy", *kind) for name, kind in kinds.items()}
        self.arrays["candidates"].append(np.zeros(1))
        self.context = RaggedWriter(folder / "context")
        own = [f for f in sources.schema.candidate if not sources.home or sources.column(f).table != sources.home]
        self.context_features = _feature_writers(folder / "context_features", sources.schema.context)
        self.candidate_features = _feature_writers(folder / "candidate_features", own)
        self.numbered_users = sources.user is None

    def append(self, split: Split, first_item: int) -> None:
        arrays = self.arrays
        arrays["user"].append(split.user + (arrays["user"].rows if self.numbered_users else 0))
        arrays["candidates"].append(split.candidates[1:] + arrays["item"].rows)
        arrays["item"].append(split.item + first_item)
        for name in ("labels", "weights", "example", "oracle"):
            if name in arrays:
                arrays[name].append(getattr(split, name))
        self.context.append(split.context)
        for writers, values in (
            (self.context_features, split.context_features),
            (self.candidate_features, split.candidate_features),
        ):
            for name, writer in writers.items():
                writer.append(values[name])

    def close(self) -> None:
        self.context.close()
        for writer in (*self.arrays.values(), *self.context_features.values(), *self.candidate_features.values()):
            writer.close()


def _feature_writers(folder: Path, features: Sequence[Feature]) -> dict[str, ArrayWriter]:
    return {
        kind.feature.name: ArrayWriter(folder / f"{kind.feature.name}.npy", kind.dtype, kind.row_shape)
        for kind in of_kind(features, ArrayKind)
    }
