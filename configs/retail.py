"""What a customer buys next against other items that sell as well, from what they bought before: DIN and DCN-V2.

    python configs/retail.py data/online_retail                        # once: writes purchases.parquet there
    SRSJAX_DATA=data python -m srsjax.train --config retail

Data: Online Retail (CC BY 4.0; archive.ics.uci.edu/dataset/352). `interactions`: invoice_no, stock_code, user_id (may
be missing), country, invoice_date, is_cancellation, split (by time); `items`: stock_code, train_median_unit_price,
train_purchase_rows. The first command adds to every row the items of the customer's earlier invoices, newest first, and
when each was bought last.

For each purchase four items are drawn, each as often as it was bought in training: how popular an item is says nothing
then, and what is left to learn is who buys what. A cancellation is a 0. Results: configs/README.md.
"""

import itertools
import sys
from datetime import datetime

from srsjax.config import (
    Batch,
    Catalogue,
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

BEFORE = 30
"""Items of earlier invoices that are read."""
RECENCY = Categorical(
    "recency", column="before_dates", max_values=BEFORE, along="before", times="recency", until="invoice_date"
)
"""How long before the invoice each of them was bought last. Reading it gained nothing (configs/README.md)."""


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/online_retail"
    return TrainConfig(
        schema=Schema(
            context=(
                Categorical("user", column="user_id", dropout=0.2),
                Categorical("before", max_values=BEFORE, like="item", pooling="attention"),
                Categorical("country", dropout=0.1),
                Numeric("hour", column="invoice_date", scale="cyclic"),
                Numeric("weekday", column="invoice_date", scale="cyclic", period=7 * 86400.0),
            ),
            candidate=(
                Categorical("item", column="items.stock_code", dropout=0.05),
                Numeric("price", column="items.train_median_unit_price", scale="log", missing="indicator"),
            ),
            tasks=(Task("bought", column="is_cancellation", positive="false"),),
        ),
        data=Data(
            log=Table(f"{folder}/purchases.parquet"),
            catalogues=(Catalogue(f"{folder}/items.parquet", key="stock_code", unknown="drop"),),
            negatives=4,
            negatives_by="train_purchase_rows",
            user="user_id",
            keys=("user_id", "stock_code", "invoice_no"),
            split=Split(by="column", column="split"),
        ),
        model=Model(
            combine="dcn", hidden_size=16, initializer_range=0.05, combine_layers=(64, 32), combine_dropout=0.1
        ),
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1),
        epochs=2,
        log_every=200,
    )


def write_purchases(folder: str) -> str:
    """Adds the columns `before` and `before_dates` to the sales of a folder, and says where the table is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sales = pq.read_table(f"{folder}/interactions.parquet")
    users, items = sales["user_id"].to_pylist(), sales["stock_code"].to_pylist()
    invoices, cancelled = sales["invoice_no"].to_pylist(), sales["is_cancellation"].to_pylist()
    times = sales["invoice_date"].to_pylist()
    rows = sorted(range(len(users)), key=lambda row: (times[row], invoices[row]))
    bought: dict[int, dict[str, datetime]] = {}  # newest first
    waiting: dict[int, tuple[str, dict[str, datetime]]] = {}  # the invoice at hand: its items are no past yet
    before: list[dict[str, datetime]] = [{} for _ in rows]
    for row in rows:
        user = users[row]
        if user is None:
            continue
        invoice, own = waiting.get(user, ("", {}))
        if invoice != invoices[row]:
            newest = {item: own[item] for item in reversed(own)}
            both = newest | {item: at for item, at in bought.get(user, {}).items() if item not in newest}
            bought[user] = dict(itertools.islice(both.items(), BEFORE))
            waiting[user] = (invoices[row], own := {})
        before[row] = bought[user]
        if not cancelled[row]:
            own.pop(items[row], None)  # bought twice: its place is that of the last time
            own[items[row]] = times[row]
    sales = sales.append_column("before", [[[*own] for own in before]])
    dates = [[[*own.values()] for own in before]]
    sales = sales.append_column("before_dates", pa.chunked_array(dates, pa.list_(sales["invoice_date"].type)))
    pq.write_table(sales, f"{folder}/purchases.parquet", compression="zstd")
    return f"{folder}/purchases.parquet"


if __name__ == "__main__":
    print(write_purchases(sys.argv[1]))
