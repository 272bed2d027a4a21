"""What it costs to close a gap between groups: a planted one on the simulated shop, and ages of reviewers.

    python tests/bench/fairness.py --out fairness
    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/fairness.py --out fairness --data reviews

On the shop every second click of the users of two countries is missing from the log; the model may read the country.
`true` columns are measured against the clicks that there were. On reviews (`configs/reviews.py`) groups are ages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from srsjax.config import Shop
from srsjax.data.shop import write_shop

VARIANTS = {
    "plain": (),
    "reweight": ("--fairness.by", "group"),
    "opportunity 5": ("--fairness.by", "group", "--fairness.method", "opportunity", "--fairness.strength", "5"),
    "opportunity 20": ("--fairness.by", "group", "--fairness.method", "opportunity", "--fairness.strength", "20"),
}
MISSED = ("US", "TW")
"""Countries half of whose clicks are missing."""
SHOP = """
import runpy
from dataclasses import replace
from srsjax.config import Catalogue, Categorical, Split, Table

def get_config():
    made = runpy.run_path({config!r})["get_config"]()
    data = replace(made.data, shop=type(made.data.shop)(), log=Table("log.parquet"), oracle="",
                   split=Split(by="column", column="part"),
                   catalogues=(Catalogue("shop/items.parquet", name="items", key="item_id"),))
    schema = replace(made.schema, context=(*made.schema.context, Categorical("group")))
    evaluate = replace(made.evaluate, slices=("group",), every=0, threshold=0.3)
    return replace(made, data=data, schema=schema, evaluate=evaluate, epochs=2)
"""
REVIEWS = """
import runpy
from dataclasses import replace
from srsjax.config import Categorical, Table

def get_config():
    made = runpy.run_path({config!r})["get_config"]()
    schema = replace(made.schema, candidate=(*made.schema.candidate, Categorical("group")))
    data = replace(made.data, log=Table("log.parquet"))
    return replace(made, data=data, schema=schema, evaluate=replace(made.evaluate, slices=("group",)))
"""


def main() -> None:
    """Trains what is not there yet, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("fairness"), help="folder of the data and the runs")
    parser.add_argument("--data", choices=("shop", "reviews"), default="shop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    folder = given.out.absolute() / given.data
    folder.mkdir(parents=True, exist_ok=True)
    name = {"shop": "ctr", "reviews": "reviews"}[given.data]
    text = {"shop": SHOP, "reviews": REVIEWS}[given.data]
    (folder / "fair.py").write_text(text.format(config=str(Path(__file__).parents[2] / "configs" / f"{name}.py")))
    if not (folder / "log.parquet").exists():
        {"shop": write_unfair_shop, "reviews": write_reviews}[given.data](folder)
    print("| training | AUC | log loss | gap of recall | gap of predicted less label | true AUC | true gap of recall |")
    print("|---|---|---|---|---|---|---|")
    for variant, options in VARIANTS.items():
        rows = [measured(folder, variant, seed, options) for seed in given.seeds]
        means = [np.mean(column) if column[0] is not None else None for column in zip(*rows, strict=True)]
        cells = ("-" if mean is None else f"{mean:.4f}" for mean in means)
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


def measured(folder: Path, variant: str, seed: int, options: tuple[str, ...]) -> list[float | None]:
    """A training's numbers on test, and against the true clicks where they are known."""
    run = f"{variant.replace(' ', '-')}-{seed}"
    report = folder / run / "report.json"
    if not report.exists():
        call(folder, "train", "--config", "fair.py", "--run_dir", run, "--seed", str(seed), *options)
    found = json.loads(report.read_text())
    gaps = found["test_slices"]["group"]["gaps"]
    numbers = [found["test"]["auc"], found["test"]["log_loss"], gaps["recall"]["gap"][0], gaps["calibration"]["gap"][0]]
    if not (folder / "truth.parquet").exists():
        return [*numbers, None, None]
    truth = folder / run / "truth.json"
    if not truth.exists():
        call(folder, "evaluate", "--run", run, "--input", "truth.parquet", "--output", str(truth))
    true = json.loads(truth.read_text())
    return [*numbers, true["model"]["auc"], true["slices"]["group"]["gaps"]["recall"]["gap"][0]]


def call(folder: Path, command: str, *arguments: str) -> None:
    """Runs a command of srsjax."""
    done = subprocess.run([sys.executable, "-m", f"srsjax.{command}", *arguments], cwd=folder, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())


def write_unfair_shop(folder: Path) -> None:
    """`log.parquet` with columns `group` (the user's country) and `part`, and `truth.parquet`: its test rows with all
    clicks."""
    write_shop(Shop(str(folder / "shop")))
    log = ds.dataset(sorted(map(str, (folder / "shop").glob("log-*.parquet")))).to_table()
    users = pq.read_table(folder / "shop/users.parquet")
    countries = users["country"].take(pc.index_in(log["user_id"], users["user_id"]))
    rng = np.random.default_rng(0)
    requests = log["request_id"].combine_chunks().dictionary_encode()
    part = rng.choice(["train", "valid", "test"], len(requests.dictionary), p=[0.7, 0.1, 0.2])
    log = log.append_column("part", pa.array(part).take(requests.indices)).append_column("group", countries)
    clicks = log["click"].to_numpy()
    kept = ~np.isin(countries.to_numpy(), MISSED) | (rng.random(len(log)) < 0.5)
    pq.write_table(log.filter(pc.equal(log["part"], "test")), folder / "truth.parquet")
    place = log.schema.get_field_index("click")
    pq.write_table(log.set_column(place, "click", pa.array(clicks * kept)), folder / "log.parquet")


def write_reviews(folder: Path) -> None:
    """`log.parquet` with a column `group`: the reviewer's age, in four parts."""
    log = pq.read_table(Path(os.environ["SRSJAX_DATA"]) / "womens_clothing_reviews/reviews.parquet")
    names = np.array(["below 35", "35 to 44", "45 to 54", "55 or more"])
    ages = names[np.searchsorted([35, 45, 55], log["age"].to_numpy(), side="right")]
    pq.write_table(log.append_column("group", pa.array(ages)), folder / "log.parquet")


if __name__ == "__main__":
    main()
