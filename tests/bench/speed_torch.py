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
from torch_finetune import (
    TIMED,
    Encoded,
    autocast,
    encode,
    faster_dtype,
    make_optimizer,
    pad,
    train_epoch,
    training_batches,
    training_units,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)


class Step:
    """BERT's training step: sdpa attention, fused AdamW, the settings of `paired.SETTINGS`."""

    def __init__(self, folder: str, rows: int, tokens: int, steps: int, dtype: str = "auto"):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
        self.shape, self.steps, self.done = (rows, tokens), steps, 0
        few = torch.from_numpy(full_rows(min(rows, 4), tokens, 0)[0]).long()
        inputs = {"input_ids": few, "attention_mask": torch.ones_like(few)}
        self.dtype = faster_dtype(self.model, inputs) if dtype == "auto" else dtype

    def precision(self) -> str:
        return self.dtype

    def gate(self) -> dict[str, list[float]]:
        self.model.eval()
        with torch.inference_mode():
            exact, _ = self._forward(0, "float32")
        logits, loss = self._forward(0, self.dtype)
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
                _, loss = self._forward(self.done, self.dtype)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return times | {"loss": loss.item()}

    def _forward(self, step: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.from_numpy(array) for array in full_rows(*self.shape, step))
        with autocast(dtype):
            logits = self.model(input_ids=ids.long(), attention_mask=torch.ones_like(ids)).logits.float()[:, 0]
        return logits, F.binary_cross_entropy_with_logits(logits, labels)

    def peak(self) -> float:
        return matmul_peak(self.dtype)


class FineTune:
    """One epoch of fine-tuning on a part of a config's training split; subclasses train."""

    def __init__(self, name: str, folder: str, examples: int, dtype: str = "auto"):
        self.config = load_config(name)
        self.config = replace(self.config, model=replace(self.config.model, pretrained=folder))
        everything = read_examples(self.config)
        self.rows = training_subset(everything, examples)
        split = np.where(np.isin(np.arange(len(everything.labels)), self.rows), "train", "other")
        self.everything, self.examples = everything, replace(everything, split=split)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder)
        encoded = encode(self.config, self.everything)
        self.dtype = faster_dtype(self.model, pad(encoded, self.rows[:TIMED])) if dtype == "auto" else dtype
        torch.manual_seed(self.config.seed)

    def precision(self) -> str:
        return self.dtype

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
        return matmul_peak(self.dtype)


class FineTuneLoop(FineTune):
    """The loop of `torch_finetune.py`: batches of similar length."""

    def train(self, encoded: Encoded) -> float:
        units, size = training_units(self.config, self.examples, encoded)
        batches = list(training_batches(units, encoded.lengths, size, np.random.default_rng(self.config.seed)))
        optimizer = make_optimizer(self.model, self.config)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
        return train_epoch(self.model, self.config, self.examples, encoded, batches, optimizer, schedule, self.dtype)


class FineTuneTrainer(FineTune):
    """transformers' Trainer with its default arguments but for precision: batches of 8 padded to the longest.

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
            options |= {"use_cpu": True, "bf16": self.dtype == "bfloat16"}
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


def matmul_peak(dtype: str, size: int = 4096) -> float:
    """FLOP/s of a product of two squares in `float32` or `bfloat16`, the best of five."""
    a = torch.randn(size, size).to(getattr(torch, dtype))
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
