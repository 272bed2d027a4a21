"""Worker of the speed tables: PyTorch and transformers. `paired.Worker` starts it."""

from __future__ import annotations

import time

import torch
from paired import arguments, serve
from speed_inputs import full_rows
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification


class Step:
    """BERT's training step in bfloat16 autocast: sdpa attention, fused AdamW, the settings of `paired.SETTINGS`."""

    def __init__(self, folder: str, rows: int, tokens: int, steps: int):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
        self.shape, self.steps, self.done = (rows, tokens), steps, 0

    def gate(self) -> dict[str, list[float]]:
        self.model.eval()
        with torch.inference_mode():
            exact, _ = self._forward(0, autocast=False)
        logits, loss = self._forward(0)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
        self.optimizer.zero_grad()
        answer = {"float32 logits": exact.tolist(), "logits": logits.tolist()}
        return answer | {"loss": [loss.item()], "gradient norm": [norm.item()]}

    def measure(self) -> dict[str, float]:
        self.model.train()
        started = time.perf_counter()
        for _ in range(self.steps):
            self.done += 1
            _, loss = self._forward(self.done)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"train": time.perf_counter() - started}

    def _forward(self, step: int, autocast: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.from_numpy(array) for array in full_rows(*self.shape, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = self.model(input_ids=ids.long(), attention_mask=torch.ones_like(ids)).logits.float()[:, 0]
        return logits, F.binary_cross_entropy_with_logits(logits, labels)

    def peak(self) -> float:
        return matmul_peak()


def matmul_peak(size: int = 4096) -> float:
    """FLOP/s of a bfloat16 product of two squares, the best of five."""
    a = torch.randn(size, size).bfloat16()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.pop("threads"))
    serve({"step": Step}[options.pop("system")](**options))


if __name__ == "__main__":
    main()
