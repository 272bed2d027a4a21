"""What a household buys next, from ids, attributes and the product's place in the shop: DCN-V2, negatives drawn.

    SRSJAX_DATA=data python -m srsjax.train --config purchases

Data: the sample of Complete Journey (CC0; github.com/bradleyboehmke/completejourney). `interactions`: user_id, item_id,
store_id, basket_id, split (by time); `items`: item_id, department, brand, product_category, product_type; `users`:
user_id, age, income and others, for a third of the households. Purchases alone: for each, four products are drawn that
were not bought. Results: configs/README.md.
"""

from srsjax.config import (
    Batch,
    Catalogue,
    Categorical,
    Data,
    Model,
    Optimizer,
    Schema,
    Split,
    Table,
    Task,
    TrainConfig,
)

ATTRIBUTES = ("age", "income", "household_size", "kids_count")


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/completejourney_sample"
    return TrainConfig(
        schema=Schema(
            context=(
                Categorical("user", column="user_id", dropout=0.2),
                Categorical("store", column="store_id"),
                *(Categorical(name, column=f"users.{name}") for name in ATTRIBUTES),
            ),
            candidate=(
                Categorical("item", column="items.item_id", dropout=0.3, min_count=2),
                *(
                    Categorical(name, column=f"items.{name}")
                    for name in ("manufacturer_id", "department", "brand", "product_category", "product_type")
                ),
            ),
            tasks=(Task("bought", positive="*"),),
        ),
        data=Data(
            log=Table(f"{folder}/interactions.parquet"),
            catalogues=(
                Catalogue(f"{folder}/items.parquet", unknown="drop"),
                Catalogue(f"{folder}/users.parquet", name="users", key="user_id", side="context", unknown="missing"),
            ),
            negatives=4,
            user="user_id",
            keys=("user_id", "item_id", "basket_id"),
            split=Split(by="column", column="split"),
        ),
        model=Model(
            combine="dcn", hidden_size=16, initializer_range=0.05, combine_layers=(64, 32), combine_dropout=0.2
        ),
        batch=Batch(rows=8, tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1),
        epochs=5,
    )
