"""What a user will rate a film, and whether 8 or more, from ids, genres and year: regression and binary.

    SRSJAX_DATA=data python -m srsjax.train --config ratings

Data: 100,000 ratings of MovieTweetings (MIT; github.com/sidooms/MovieTweetings, `snapshots/100K`). `interactions`:
user_id, item_id, rating (0 to 10), split (70 % train, 10 % valid, then test, by time); `items`: item_id, year, genres
(separated by |). Ids that become unknown now and then in training (`dropout`) teach the model what to do with
new users and films, of which the test weeks have many. Plain gradient descent moves an id in proportion to the ratings
it has, as a damped mean does; Adagrad moves one with a single rating as far. Results: configs/README.md.
"""

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


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/movietweetings_100k"
    return TrainConfig(
        schema=Schema(
            context=(Categorical("user", column="user_id", dropout=0.01),),
            candidate=(
                Categorical("film", column="item_id", dropout=0.01),
                Categorical("genres", column="items.genres", max_values=5),
                Numeric("year", column="items.year", scale="quantile", missing="median"),
            ),
            tasks=(Task("rating", kind="regression"), Task("liked", column="rating", positive=">=8")),
        ),
        data=Data(
            log=Table(f"{folder}/interactions.parquet"),
            catalogues=(Catalogue(f"{folder}/items.parquet"),),
            user="user_id",
            keys=("user_id", "item_id"),
            split=Split(by="column", column="split"),
        ),
        model=Model(
            combine="wide_deep",
            hidden_size=16,
            initializer_range=0.01,
            combine_layers=(32,),
            combine_dropout=0.6,
        ),
        batch=Batch(rows=8, tokens=128),
        optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1, tables="sgd", table_learning_rate=30),
        epochs=8,
    )
