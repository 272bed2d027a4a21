"""What a simulated shop knows besides texts (`Shop.signals`): who pays what, how items look, how good they are.

To the attraction a of `srsjax.data.shop`, inside of its sigmoid, comes

    QUALITY quality(i) + LOOK look . image(i) - PRICE thrift(u) price(i)

with a quality that only the item's id tells, an image vector whose part along one direction is liked, and the
standardised logarithm of the price, which counts more the less a user earns (`users.income`). A click is followed by a
purchase with probability

    b(u, i) = sigmoid(BUY + BUY_QUALITY quality(i) - BUY_PRICE thrift(u) price(i))

and a purchase by a rating of 1 to 5 around 3 + RATING quality(i). `click_probability` is the optimum as before, now of
a model that reads all of this too, and `buy_probability` is it times b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SIZE = 8
"""Length of an image vector."""
INCOMES = ("low", "middle", "high")
THRIFT = np.array([1.6, 0.8, 0.0])
QUALITY, LOOK, PRICE = 0.7, 0.7, 0.6
BUY, BUY_QUALITY, BUY_PRICE = -0.5, 1.0, 0.6
RATING, NOISE = 0.8, 0.6


@dataclass(frozen=True)
class Signals:
    """Properties of V items and U users."""

    quality: np.ndarray
    """[V] float64, standard normal."""
    image: np.ndarray
    """[V, SIZE] float32, standard normal."""
    look: np.ndarray
    """[SIZE] float64 of length 1, the direction that is liked."""
    income: np.ndarray
    """[U] int64, index into `INCOMES`."""
    price: np.ndarray
    """[V] float64, standardised logarithms."""

    def attraction(self, user: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """What is added inside of the sigmoid, [N, page]; `user` [N], `shown` [N, page] items."""
        cost = THRIFT[self.income[user]][:, None] * self.price[shown]
        return QUALITY * self.quality[shown] + LOOK * (self.image @ self.look)[shown] - PRICE * cost

    def buys(self, user: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Probability of a purchase after a click, [N, page]."""
        cost = THRIFT[self.income[user]][:, None] * self.price[shown]
        return 1 / (1 + np.exp(-(BUY + BUY_QUALITY * self.quality[shown] - BUY_PRICE * cost)))

    def log_columns(self, user: np.ndarray, shown: np.ndarray, click: np.ndarray, probability: np.ndarray, rng) -> dict:
        """Purchases, their probability and ratings (null where nothing was bought), one value a candidate."""
        buys = self.buys(user, shown)
        bought = click & (rng.random(shown.shape) < buys)
        stars = np.clip(np.round(3 + RATING * self.quality[shown] + NOISE * rng.normal(size=shown.shape)), 1, 5)
        return {
            "buy": bought.ravel().astype(np.int8),
            "buy_probability": (probability * buys).ravel(),
            "rating": pa.array(stars.ravel().astype(np.int8), mask=~bought.ravel()),
        }

    def image_column(self) -> pa.Array:
        """[V] list<float>."""
        return pa.FixedSizeListArray.from_arrays(self.image.ravel(), SIZE).cast(pa.list_(pa.float32()))


def make_signals(rng: np.random.Generator, users: int, price: np.ndarray) -> Signals:
    """Draws the properties; `price` [V] in the shop's currency."""
    look = rng.normal(size=SIZE)
    logarithm = np.log(price)
    return Signals(
        quality=rng.normal(size=len(price)),
        image=rng.normal(size=(len(price), SIZE)).astype(np.float32),
        look=look / np.linalg.norm(look),
        income=rng.integers(len(INCOMES), size=users),
        price=(logarithm - logarithm.mean()) / logarithm.std(),
    )
