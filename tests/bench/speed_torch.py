"""Worker of the speed tables: PyTorch and transformers. `paired.Worker` starts it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import numpy as np
import torch
from bench_examples import load_config, read_examples
from paired import Clock, arguments, serve
from speed_inputs import GATE_ROWS, full_rows, training_subset
from torch.nn import functional as F
from torch_finetune import Encoded, encode, make_optimizer, pad, train_epoch, training_batches, training_units
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)


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
        times: dict[str, float] = {}
        with Clock(times, "run"):
            for _ in range(self.steps):
                self.done += 1
                _, loss = self._forward(self.done)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return times | {"loss": loss.item()}

    def _forward(self, step: int, autocast: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.from_numpy(array) for array in full_rows(*self.shape, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = self.model(input_ids=ids.long(), attention_mask=torch.ones_like(ids)).logits.float()[:, 0]
        return logits, F.binary_cross_entropy_with_logits(logits, labels)

    def peak(self) -> float:
        return matmul_peak()


class FineTune:
    """One epoch of fine-tuning on a part of a config's training split; subclasses train."""

    def __init__(self, name: str, folder: str, examples: int):
        self.config = load_config(name)
        self.config = replace(self.config, model=replace(self.config.model, pretrained=folder))
        everything = read_examples(self.config)
        self.rows = training_subset(everything, examples)
        split = np.where(np.isin(np.arange(len(everything.labels)), self.rows), "train", "other")
        self.everything, self.examples = everything, replace(everything, split=split)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.manual_seed(self.config.seed)

    def gate(self) -> dict[str, list[float]]:
        encoded, rows = encode(self.config, self.everything), self.rows[:GATE_ROWS]
        self.model.eval()
        with torch.inference_mode():
            return {"float32 logits": self.model(**pad(encoded, rows)).logits[:, 0].tolist()}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "prepare"):  # the texts of all splits, once a run; reading and joining tables not counted
            encoded = encode(self.config, self.everything)
        with Clock(times, "run"):
            loss = self.train(encoded)
        return times | {"loss": loss}

    def train(self, encoded: Encoded) -> float:
        """Trains one epoch; the mean loss."""
        raise NotImplementedError

    def peak(self) -> float:
        return matmul_peak()


class FineTuneLoop(FineTune):
    """The loop of `torch_finetune.py`: bfloat16 autocast, batches of similar length."""

    def train(self, encoded: Encoded) -> float:
        units, size = training_units(self.config, self.examples, encoded)
        batches = list(training_batches(units, encoded.lengths, size, np.random.default_rng(self.config.seed)))
        optimizer = make_optimizer(self.model, self.config)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
        return train_epoch(self.model, self.config, self.examples, encoded, batches, optimizer, schedule)


class FineTuneTrainer(FineTune):
    """transformers' Trainer with its default arguments: float32, batches of 8 padded to the longest, fused AdamW.

    Its loss is binary cross-entropy on labels (on click rates where the config's task is listwise: batches of 8
    candidates do not hold whole impressions). It saves nothing, which its defaults would do at the end.
    """

    def train(self, encoded: Encoded) -> float:
        data = [
            {
                "input_ids": encoded.tokens[i],
                "token_type_ids": encoded.types[i],
                "label": float(self.examples.labels[i]),
            }
            for i in self.rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            options = {"num_train_epochs": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
            trainer = Trainer(
                self.model,
                TrainingArguments(output_dir=folder, **options),
                data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(self.config.model.pretrained)),
                train_dataset=data,
                compute_loss_func=lambda outputs, labels, num_items_in_batch=None: F.binary_cross_entropy_with_logits(
                    outputs.logits[:, 0], labels
                ),
            )
            return trainer.train().training_loss


def matmul_peak(size: int = 4096) -> float:
    """FLOP/s of a bfloat16 product of two squares, the best of five."""
    a = torch.randn(size, size).bfloat16()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


SYSTEMS = {"step": Step, "loop": FineTuneLoop, "trainer": FineTuneTrainer}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.pop("threads"))
    serve(SYSTEMS[options.pop("system")](**options))


if __name__ == "__main__":
    main()
