"""How fast a large log is prepared, by the cores of one machine and by Spark, and whether memory stays flat.

    python tests/bench/prepare.py --rows 20_000_000 --out prepare            # add: --engines local spark

The log is that of the simulated shop (`srsjax.data.shop`), its files repeated under new request ids until there are so
many rows; a quarter of the files is prepared first. Each is prepared in a process of its own. `anonymous` is the most
memory the process held of its own (sampled), which must not grow with the log; `peak` also counts pages of
memory-mapped files, which the kernel takes back when it needs them. `--engines spark` uses Spark's own settings.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_examples import load_config

from srsjax.config import Catalogue, Shop, Table
from srsjax.data.preparing.prepare import peak_memory, prepare
from srsjax.data.shop import write_shop

FILES = 16
PAGES = 40_000


def write_log(folder: Path, rows: int) -> None:
    """`log-00.parquet` ... with `rows` rows altogether, and the catalogue `items.parquet`."""
    shop = Shop(str(folder / "shop"), impressions=PAGES)
    write_shop(shop)
    shutil.copy(folder / "shop" / "items.parquet", folder / "items.parquet")
    page = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "shop").glob("log-*.parquet"))])
    requests = page["request_id"].cast(pa.string())
    copy = 0
    for number in range(FILES):
        left = math.ceil(rows * (number + 1) / FILES) - math.ceil(rows * number / FILES)
        with pq.ParquetWriter(folder / f"log-{number:02}.parquet", page.schema) as writer:
            while left > 0:
                part = page.slice(0, left)
                unique = pc.binary_join_element_wise(requests.slice(0, left), f"{copy}", "-")
                at = page.schema.get_field_index("request_id")
                writer.write_table(part.set_column(at, page.schema.field(at), unique), row_group_size=1 << 17)
                left, copy = left - len(part), copy + 1


def measure(folder: Path, files: int, engine: str) -> None:
    """Prepares the first files and prints what it took as JSON; in a process of its own."""
    most, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            status = Path("/proc/self/status").read_text()
            most[0] = max(most[0], int(re.search(r"RssAnon:\s*(\d+)", status)[1]) >> 10)

    config = load_config("ctr")
    paths = tuple(str(folder / f"log-{number:02}.parquet") for number in range(files))
    data = replace(config.data, shop=Shop(), log=Table(paths), engine=engine, store=str(folder / f"stores-{engine}"))
    data = replace(data, catalogues=(Catalogue(str(folder / "items.parquet"), name="items", key="item_id"),))
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    began = time.monotonic()
    store = prepare(replace(config, data=data), log=lambda text: None)
    seconds = time.monotonic() - began
    done.set()
    rows, size = store.manifest["rows"]["read"], sum(Path(path).stat().st_size for path in paths)
    print(json.dumps({"rows": rows, "bytes": size, "seconds": seconds, "peak": peak_memory(), "anonymous": most[0]}))
    shutil.rmtree(store.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("prepare"), help="folder of the log and the stores")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--engines", nargs="+", choices=["local", "spark"], default=["local"])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.out.absolute(), int(args.measure[0]), args.measure[1])
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / f"rows-{args.rows}").exists():
        write_log(args.out, args.rows)
        (args.out / f"rows-{args.rows}").touch()
    print("| engine | rows | s | rows/s | MB/s | peak MiB | anonymous MiB |", "|---|---|---|---|---|---|---|", sep="\n")
    for engine in args.engines:
        for files in (FILES // 4, FILES):
            command = [sys.executable, __file__, "--out", str(args.out), "--measure", str(files), engine]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
            rows, seconds = found["rows"], found["seconds"]
            print(
                f"| {engine} | {rows:,} | {seconds:.1f} | {rows / seconds:,.0f} | {found['bytes'] / seconds / 1e6:.1f} "
                f"| {found['peak']:,} | {found['anonymous']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
