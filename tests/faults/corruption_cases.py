"""Data, damage and the table of outcomes of `test_faults_corruption`."""

from __future__ import annotations

import os
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from srsjax.errors import InputError

FLIPS = 4
"""Bits flipped in each file, one a cell."""
CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Text("query", max_tokens=6), Categorical("device")),
            candidate=(
                Text("title", column="items.title", max_tokens=6),
                Categorical("brand", column="items.brand"),
                Numeric("price"),
            ),
            tasks=(Task("click"),),
        ),
        data=Data(
            log=Table("log.csv"),
            catalogues=(Catalogue("items.csv", name="items", key="item"),),
            group_by="request", user="user", oracle="p", store="stores",
            split=Split(by="column", column="part"),
        ),
        tokenizer=Tokenizer(vocab_size=150),
        model=Model(
            hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_positions=32, combine="concat",
        ),
        batch=Batch(rows=8, tokens=32),
        evaluate=Evaluate(every=4),
        checkpoints=Checkpoints(keep=2),
        max_steps=8,
        log_every=4,
        run_dir="run",
    )
"""


def write_data(folder: Path, seed: int) -> None:
    """A log of 120 requests over 12 items, of other contents by seed."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "coat", "hat", "wool", "silk", "green", "shoe"]
    items = [f"i{n},{' '.join(rng.choice(words, 3))},b{n % 3}" for n in range(12)]
    (folder / "items.csv").write_text("\n".join(["item,title,brand", *items]))
    rows = []
    for n in range(120):
        context = f"r{n},u{n % 9},{' '.join(rng.choice(words, 2))},d{n % 2}"
        part = ("train", "train", "valid", "test")[n % 4]
        for _ in range(2):
            item, price, click, p = rng.integers(12), rng.integers(1, 9) / 2, rng.integers(2), rng.random()
            rows.append(f"{context},i{item},{price},{click},{p:.3f},{part}")
    (folder / "log.csv").write_text("\n".join(["request,user,query,device,item,price,click,p,part", *rows]))
    (folder / "config.py").write_text(CONFIG)


# ---------------------------------------------------------------------------------------------- damage


def damage(path: Path, kind: str, other: Path) -> None:
    """Does to a file what the kind says; the files of a copy are links, so that a new one is put in its place."""
    content = path.read_bytes()
    path.unlink()
    if kind == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
    elif kind.startswith("flip"):
        rng = np.random.default_rng([zlib.crc32(path.name.encode()), int(kind[4:])])
        byte, bit = divmod(int(rng.integers(8 * len(content))), 8)
        changed = bytearray(content)
        changed[byte] ^= 1 << bit
        path.write_bytes(changed)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def alike(folder: Path, name: str) -> Path:
    """The file of another store or run with this name; Orbax names files of arrays at random: one of that folder."""
    path = folder / name
    return path if path.exists() else next(each for each in path.parent.iterdir() if each.is_file())


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, copy_function=os.link))


def outcome(load, expected: str, names: tuple[str, ...]) -> str:
    """What became of a cell. Fails nothing: `SILENT` and `TRACEBACK` are for the caller to refuse."""
    try:
        found = load()
    except InputError as error:
        said = str(error)
        named = any(name in said for name in names) and "\n" not in said
        return f"refused: {said}" if named else f"UNNAMED: {said}"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {str(error)[:200]}"
    return "no effect" if found == expected else "SILENT"


def matrix(source: Path, target: Path, cells, other: Path, load, named=lambda name: (name,)) -> dict:
    """The outcome of each cell (file, kind) on a fresh copy of the source."""
    expected = load(copy(source, target))
    found = {}
    for name, kind in cells:
        damage(copy(source, target) / name, kind, alike(other, name))
        found[name, kind] = outcome(lambda: load(target), expected, named(name))
    return found


def tell(title: str, found: dict) -> None:
    """Prints the table, and fails for a cell that is silent, without a name or with a traceback."""
    print(f"\n{title}: {dict(Counter(said.partition(':')[0] for said in found.values()))}")
    for (name, kind), said in found.items():
        print(f"  {name:60} {kind:9} {said}")
    assert not [(cell, said) for cell, said in found.items() if not said.startswith(("refused", "no effect"))]


ALL = ("truncate", *(f"flip{n}" for n in range(FLIPS)), "delete", "swap")


def every(folder: Path, under: str = "") -> list[tuple[str, str]]:
    return [(name, kind) for name in files_of(folder) if name.startswith(under) for kind in ALL]


def flip(path: Path, byte: int, bit: int = 0) -> None:
    """Flips a bit of a file, in a new one of its name."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)
