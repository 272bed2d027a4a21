"""Vectors in files of their own: rows of an array, a folder of arrays, and pictures read by an image encoder."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srsjax.config import Catalogue, Categorical, Data, Schema, Split, Table, Task, Tokenizer, TrainConfig, Vector
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import prepare
from srsjax.data.reading.vectors import open_vectors
from srsjax.errors import InputError

ITEMS, SIZE = 5, 16


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    items = {"item": [f"i{n}" for n in range(ITEMS)], "row": [4, 3, None, 1, 0]}
    pq.write_table(
        pa.table(items | {"kind": ["a", "b"] * 2 + ["a"], "picture": ["a.png", "b", "deep/c.jpg", "none", None]}),
        tmp_path / "items.parquet",
    )
    n = 40
    log = {"item": [f"i{k % ITEMS}" for k in range(n)], "click": [k % 2 for k in range(n)]}
    log["part"] = [("train", "train", "valid", "test")[k % 4] for k in range(n)]
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    np.save(tmp_path / "rows.npy", rng.normal(size=(5, SIZE)))
    (tmp_path / "each").mkdir()
    for name in ("i0", "i3"):
        np.save(tmp_path / "each" / f"{name}.npy", rng.normal(size=SIZE).astype(np.float32))
    return tmp_path


def a_config(folder, *features) -> TrainConfig:
    return TrainConfig(
        schema=Schema(candidate=(Categorical("kind", column="items.kind"), *features), tasks=(Task("click"),)),
        data=Data(
            log=Table(str(folder / "log.parquet")),
            catalogues=(Catalogue(str(folder / "items.parquet"), key="item"),),
            split=Split(by="column", column="part"),
            store=str(folder / "stores"),
        ),
        tokenizer=Tokenizer(vocab_size=100),
    )


def quiet(_) -> None:
    pass


def test_rows_of_an_array_and_files_by_name(folder, monkeypatch):
    monkeypatch.setenv("VECTORS", str(folder))
    config = a_config(
        folder,
        Vector("row", column="items.row", files="${VECTORS}/rows.npy", size=SIZE, missing="indicator"),
        Vector("each", column="items.item", files=str(folder / "each"), size=SIZE, missing="constant", fill=0.5),
    )
    store = prepare(config, log=quiet)
    array = np.load(folder / "rows.npy").astype(np.float32)
    np.testing.assert_array_equal(store.items.features["row"], array[[4, 3, 0, 1, 0]] * [[1], [1], [np.nan], [1], [1]])
    each = store.items.features["each"]
    np.testing.assert_array_equal(each[0], np.load(folder / "each" / "i0.npy"))
    np.testing.assert_array_equal(each[[1, 2, 4]], np.full((3, SIZE), 0.5))
    # Values instead of files name them too; and the vectors are part of what a store depends on.
    encoded = load_encoder(config, store.folder).encode_values([{}], [[{"kind": "a", "row": 2, "item": "i3"}]])
    np.testing.assert_array_equal(encoded.items.features["row"][0], array[2])
    said: list[str] = []
    prepare(config, log=said.append)
    assert "nothing it depends on has changed" in said[0]
    os.utime(folder / "rows.npy", (1, 1))
    open_vectors.cache_clear()
    said.clear()
    prepare(config, log=said.append)
    assert "files of vectors" in said[0]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"column": "items.row", "files": "rows.npy", "size": 3}, "found 16 numbers, expected 3 finite"),
        ({"column": "items.item", "files": "rows.npy"}, 'row 1, column item: found "i0", expected a row of rows.npy'),
        ({"column": "items.row", "files": "nowhere.npy"}, "nowhere.npy: no such file or folder"),
        ({"column": "items.row", "files": "items.parquet"}, "not a .npy file of numbers"),
        ({"column": "items.item", "encoder": "vit"}, "found an encoder without files"),
        ({"column": "items.item", "files": "each", "encoder": "no/such-model"}, "no pictures"),
        ({"column": "items.item", "files": "each"}, 'column item: found "i1"'),
    ],
)
def test_what_is_no_vector_is_refused_by_name(folder, monkeypatch, feature, message):
    monkeypatch.chdir(folder)
    config = a_config(folder, Vector("v", **({"size": SIZE} | feature)))
    with pytest.raises(InputError, match=message):
        prepare(config, log=quiet)


def test_an_array_of_objects_is_not_unpickled(folder):
    np.save(folder / "rows.npy", np.array([{"a": 1}], object), allow_pickle=True)
    open_vectors.cache_clear()
    with pytest.raises(InputError, match=r"rows\.npy: not a \.npy file of numbers"):
        prepare(a_config(folder, Vector("v", column="items.row", files=str(folder / "rows.npy"), size=1)), log=quiet)


def test_pictures_are_read_once_by_an_encoder_and_those_not_there_are_missing(folder, capsys):
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[images]'")
    image = pytest.importorskip("PIL.Image", reason="needs pip install -e '.[images]'")
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(folder / "vit")
    processor.save_pretrained(folder / "vit")
    pictures, rng = {}, np.random.default_rng(1)
    (folder / "pictures" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "deep/c.jpg"):
        image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "pictures" / name)
        pictures[name] = image.open(folder / "pictures" / name).convert("RGB")
    (folder / "pictures" / "broken.jpg").write_bytes(b"no picture")
    where = {"files": str(folder / "pictures"), "encoder": str(folder / "vit")}
    config = a_config(folder, Vector("picture", column="items.picture", size=SIZE, missing="indicator", **where))
    store = prepare(config, log=quiet)
    assert "3 pictures encoded by" in (said := capsys.readouterr().out) and "1 could not be read" in said
    found = store.items.features["picture"]
    with torch.no_grad():
        inputs = processor(images=list(pictures.values()), return_tensors="pt")
        wanted = model(**inputs).pooler_output.numpy()
    np.testing.assert_allclose(found[:3], wanted, atol=1e-5)  # by name, without its ending, in a folder
    assert np.isnan(found[3:]).all()
    [kept] = (folder / "stores" / "pictures").iterdir()
    assert json.loads((kept / "names.json").read_text()) == ["a.png", "b.jpg", "deep/c.jpg"]
    open_vectors.cache_clear()
    load_encoder(config, store.folder).encode_values([{}], [[{"item": "i0"}]])
    assert "encoded by" not in capsys.readouterr().out  # kept from before
