"""How many of an item will be sold next week: regression over ids, prices and the weeks before, without text.

    python configs/demand.py data/online_retail                        # once: writes weeks.parquet there
    SRSJAX_DATA=data python -m srsjax.train --config demand

Data: Online Retail (CC BY 4.0; archive.ics.uci.edu/dataset/352), `interactions.parquet` with the columns stock_code,
invoice_date, quantity, unit_price and is_cancellation. The first command sums it to a row for every item and week in
which the item had been sold in the four weeks before: units of each of these, price, and the label `demand`, the
logarithm of 1 + units of the week. Split by time: the last two tenths of the weeks are valid and test. Results:
configs/README.md.
"""

import sys

from srsjax.config import (
    Batch,
    Categorical,
    Data,
    Model,
    Numeric,
    Optimizer,
    Schema,
    Split,
    Table,
    Task,
    TrainConfig,
)

WEEK = 7 * 86400
BEFORE = 4
"""Weeks that are looked back at."""


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            candidate=(
                Categorical("item", column="stock_code", dropout=0.3, min_count=5),
                Numeric("price", scale="log"),
                Numeric("usual"),
                *(Numeric(f"week_{ago}") for ago in range(1, BEFORE + 1)),
            ),
            tasks=(Task("demand", kind="regression", loss="huber"),),
        ),
        data=Data(
            log=Table("${SRSJAX_DATA}/online_retail/weeks.parquet"),
            keys=("stock_code", "time"),
            split=Split(by="time", column="time"),
        ),
        model=Model(
            combine="deepfm", hidden_size=16, initializer_range=0.05, combine_layers=(64, 32), combine_dropout=0.1
        ),
        batch=Batch(rows=4, tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1),
        epochs=3,
    )


def write_weeks(folder: str) -> str:
    """Sums the sales of a folder by item and week, and says where the table is."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    sales = pq.read_table(f"{folder}/interactions.parquet")
    sales = sales.filter(pc.and_(pc.invert(sales["is_cancellation"]), pc.greater(sales["quantity"], 0)))
    seconds = sales["invoice_date"].cast(pa.timestamp("s")).cast(pa.int64()).to_numpy()
    week = seconds // WEEK - seconds.min() // WEEK
    codes, item = np.unique(sales["stock_code"].to_numpy(zero_copy_only=False), return_inverse=True)
    shape = (len(codes), int(week.max()) + 1)
    units, paid = np.zeros(shape), np.zeros(shape)
    quantity = sales["quantity"].to_numpy()
    np.add.at(units, (item, week), quantity)
    np.add.at(paid, (item, week), quantity * sales["unit_price"].to_numpy())

    rows: dict[str, list] = {name: [] for name in ("stock_code", "time", "price", "usual", "demand")}
    rows |= {f"week_{ago}": [] for ago in range(1, BEFORE + 1)}
    for now in range(BEFORE, shape[1] - 1):  # the last week is not whole
        recent = units[:, now - BEFORE : now]
        own = np.flatnonzero(recent.sum(1) > 0)
        sold = np.log1p(recent[own])
        rows["stock_code"] += codes[own].tolist()
        rows["time"] += [(now + int(seconds.min() // WEEK)) * WEEK] * len(own)
        rows["price"] += (paid[own, now - BEFORE : now].sum(1) / recent[own].sum(1)).tolist()
        rows["usual"] += sold.mean(1).tolist()
        rows["demand"] += np.log1p(units[own, now]).tolist()
        for ago in range(1, BEFORE + 1):
            rows[f"week_{ago}"] += sold[:, BEFORE - ago].tolist()
    pq.write_table(pa.table(rows), f"{folder}/weeks.parquet", compression="zstd")
    return f"{folder}/weeks.parquet"


if __name__ == "__main__":
    print(write_weeks(sys.argv[1]))
