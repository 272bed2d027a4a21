"""A classifier as an ONNX program: what torch makes of the Hugging Face folder that `srsjax.export` writes.

torch, transformers, onnx and onnxscript are imported here only (extra `[onnx]`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path

import numpy as np

from srsjax.errors import InputError

NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs, [batch, tokens] int64, as the tokenizer of the folder gives them; a RoBERTa has no token types."""
TOLERANCE = 1e-4
"""Largest difference of a logit: both compute in float32, with sums in another order."""


def check_onnx() -> None:
    """Raises InputError where a library is missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"--format onnx: needs {', '.join(missing)}; pip install 'srsjax[onnx]'")


def save(folder: Path) -> float:
    """Writes `model.onnx` beside the weights of a `...ForSequenceClassification` folder, and compares it with them.

    Its inputs are `INPUTS` of any batch and number of tokens, its output `logits` [batch, K] float32.

    Returns the largest difference of a logit on random tokens of other shapes than it was traced with. Raises
    InputError where it is above `TOLERANCE`, and the file is gone then.
    """
    import onnxruntime
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    names = INPUTS if model.config.type_vocab_size > 1 else INPUTS[:2]
    given = {name: torch.tensor(values) for name, values in _tokens(model.config, names, 2, 8).items()}
    dynamic = {name: {axis: torch.export.Dim.DYNAMIC for axis in range(2)} for name in names}
    options = {"input_names": names, "output_names": ["logits"], "dynamic_shapes": dynamic}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (), kwargs=given, dynamo=True, external_data=False, verbose=False, **options)
    program.save(str(folder / FILE))
    session, apart = onnxruntime.InferenceSession(str(folder / FILE)), 0.0
    for rows, tokens in ((1, 5), (3, model.config.max_position_embeddings // 2)):
        batch = _tokens(model.config, names, rows, tokens)
        with torch.no_grad():
            expected = model(**{name: torch.tensor(values) for name, values in batch.items()}).logits.numpy()
        apart = max(apart, float(np.abs(session.run(None, batch)[0] - expected).max()))
    if not apart <= TOLERANCE:
        (folder / FILE).unlink()
        raise InputError(f"{folder}: the logits of the ONNX program differ by {apart:.1e}, expected {TOLERANCE:g}")
    return apart


def _tokens(config, names: tuple[str, ...], rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Random inputs, the later rows padded at their end."""
    rng = np.random.default_rng(0)
    mask = np.arange(tokens) < rng.integers(tokens // 2, tokens + 1, (rows, 1))
    ids = np.where(mask, rng.integers(0, config.vocab_size, (rows, tokens)), config.pad_token_id)
    types = np.broadcast_to(np.arange(tokens) > tokens // 2, ids.shape)
    found = dict(zip(INPUTS, (ids, mask, types), strict=True))
    return {name: found[name].astype(np.int64) for name in names}
