"""Worker of `speed.py predict`: sentence-transformers' CrossEncoder, ONNX Runtime and OpenVINO.

The latter two need `pip install onnx onnxruntime onnxscript openvino nncf`. Both score batches of pairs of like length,
as the CrossEncoder does. int8 is what their own tools make of the same weights: ONNX Runtime's transformer optimizer
(fused attention) with dynamic quantisation, and NNCF's post-training quantisation of transformers, given 128 pairs.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from paired import Clock, arguments, serve
from predict_inputs import MIXES, read_pairs
from sentence_transformers import CrossEncoder
from speed_inputs import GATE_ROWS
from speed_torch import matmul_peak
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 32
"""Pairs of a batch, the CrossEncoder's own default."""


class Pairs:
    """The pairs of a mix; subclasses score them."""

    dtype = "float32"

    def __init__(self, folder: str, mix: str, contexts: int):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.longest = MIXES[mix].context + MIXES[mix].candidate + 3
        context, candidates = read_pairs(mix, contexts, self.tokenizer)
        self.pairs = [(text, each) for text, own in zip(context, candidates, strict=True) for each in own]

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Logits [n] float32, texts included."""
        raise NotImplementedError

    def precision(self) -> str:
        return self.dtype

    def gate(self) -> dict[str, list[float]]:
        return {"logits": self.score(self.pairs[:GATE_ROWS]).tolist()}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self.score(self.pairs)
        return times

    def peak(self) -> float:
        return matmul_peak("bfloat16" if self.dtype == "bfloat16" else "float32")

    def flops(self) -> float:
        return 0.0


class Library(Pairs):
    """`CrossEncoder.predict` as installed; `auto` is the faster of float32 and bfloat16 on a batch."""

    def __init__(self, folder: str, mix: str, contexts: int, dtype: str):
        super().__init__(folder, mix, contexts)
        self.dtype = (
            min(("float32", "bfloat16"), key=lambda each: self._seconds(folder, each)) if dtype == "auto" else dtype
        )
        self._load(folder, self.dtype)

    def _load(self, folder: str, dtype: str) -> None:
        self.model = CrossEncoder(
            folder, max_length=self.longest, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}
        )

    def _seconds(self, folder: str, dtype: str) -> float:
        self._load(folder, dtype)
        times: dict[str, float] = {}
        for _ in range(2):  # the first call warms up
            with Clock(times, "batch"):
                self.score(self.pairs[:BATCH])
        return times["batch"]

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return np.asarray(
            self.model.predict(pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False),
            np.float32,
        )


class Runtime(Pairs):
    """A function of token arrays, called on batches of pairs of like length."""

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        encoded = self.tokenizer(
            [pair[0] for pair in pairs], [pair[1] for pair in pairs], truncation=True, max_length=self.longest
        )
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        out = np.empty(len(pairs), np.float32)
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            batch = self.tokenizer.pad({name: [values[i] for i in rows] for name, values in encoded.items()})
            out[rows] = self.run({name: np.asarray(values, np.int64) for name, values in batch.items()})
        return out

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [B] float32."""
        raise NotImplementedError

    def onnx(self, folder: str, path: Path) -> None:
        """Writes the model as ONNX, sizes of a batch free."""
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        few = self.tokenizer(*map(list, zip(*self.pairs[:2], strict=True)), padding=True, return_tensors="pt")
        names = ("input_ids", "attention_mask", "token_type_ids")
        torch.onnx.export(
            model,
            tuple(few[name] for name in names),
            str(path),
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names} | {"logits": {0: "rows"}},
            opset_version=17,
            dynamo=False,
        )


class OnnxRuntime(Runtime):
    """ONNX Runtime, int8 with fused attention."""

    def __init__(self, folder: str, mix: str, contexts: int, dtype: str, threads: int):
        super().__init__(folder, mix, contexts)
        self.dtype = dtype
        import onnx
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers.optimizer import optimize_model

        sizes = AutoModelForSequenceClassification.from_pretrained(folder).config
        with tempfile.TemporaryDirectory() as made:
            plain, fused, small = (Path(made) / f"{name}.onnx" for name in ("plain", "fused", "int8"))
            self.onnx(folder, plain)
            heads = (sizes.num_attention_heads, sizes.hidden_size)
            optimize_model(str(plain), "bert", *heads).save_model_to_file(str(fused))
            given = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # it cannot infer types behind fused nodes
            quantize_dynamic(str(fused), str(small), weight_type=QuantType.QInt8, per_channel=True, extra_options=given)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self.session = onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, inputs)[0][:, 0]


class OpenVino(Runtime):
    """OpenVINO, int8."""

    def __init__(self, folder: str, mix: str, contexts: int, dtype: str, threads: int):
        super().__init__(folder, mix, contexts)
        self.dtype = dtype
        import nncf
        import openvino

        with tempfile.TemporaryDirectory() as made:
            self.onnx(folder, Path(made) / "plain.onnx")
            model = openvino.convert_model(str(Path(made) / "plain.onnx"))
        rows = [
            {name: np.asarray([values]) for name, values in self.tokenizer(*pair).items()} for pair in self.pairs[:128]
        ]
        small = nncf.quantize(model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
        self.compiled = openvino.Core().compile_model(
            small, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        )

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.compiled(inputs)[0][:, 0]


SYSTEMS = {"library": Library, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def main() -> None:
    options = arguments()
    threads, system = options.pop("threads"), options.pop("system")
    torch.set_num_threads(threads)
    more = {} if system == "library" else {"threads": threads}
    with contextlib.redirect_stdout(sys.stderr):  # the answers alone go there
        made = SYSTEMS[system](**options, **more)
    serve(made)


if __name__ == "__main__":
    main()
