"""Worker of `speed.py predict`: srsjax's `Scorer` with the weights of a Hugging Face classifier. `int8` computes the
rest in bfloat16."""

from __future__ import annotations

import numpy as np
from paired import Clock, arguments, serve
from predict_inputs import MIXES, read_pairs
from speed_inputs import GATE_ROWS
from speed_srsjax import matmul_peak
from transformers import AutoTokenizer

from srsjax.inference.scorer import Scorer


class Pairs:
    """The pairs of a mix, in one call of `predict`, texts included."""

    def __init__(self, folder: str, mix: str, contexts: int, dtype: str):
        longest = MIXES[mix].context + MIXES[mix].candidate + 3
        small, self.dtype = dtype == "int8", dtype
        self.scorer = Scorer.load(
            folder, max_length=longest, dtype="bfloat16" if small else dtype, quantize="int8" if small else "none"
        )
        context, candidates = read_pairs(mix, contexts, AutoTokenizer.from_pretrained(folder))
        self.pairs = [(text, each) for text, own in zip(context, candidates, strict=True) for each in own]

    def precision(self) -> str:
        return self.dtype if self.dtype == "int8" else self.scorer.session.compute.dtype.name

    def gate(self) -> dict[str, list[float]]:
        scores = np.asarray(self.scorer.predict(self.pairs[:GATE_ROWS]), np.float64)
        return {"logits": np.log(scores / (1 - scores)).tolist()}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self.scorer.predict(self.pairs)
        return times

    def flops(self) -> float:
        return 0.0

    def peak(self) -> float:
        return matmul_peak("float32" if self.precision() == "float32" else "bfloat16")


def main() -> None:
    options = arguments()
    options.pop("threads")  # the processor affinity decides
    options.pop("system")
    serve(Pairs(**options))


if __name__ == "__main__":
    main()
