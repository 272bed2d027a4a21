"""report.html of real runs: well-formed, with every number, safe with hostile texts, silent about private ones."""

from __future__ import annotations

import csv
import itertools
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from srsjax.metrics import report

CONFIG = """
from srsjax.config import *

def get_config():
    candidate = (
        Text("title"), Categorical("brand"), Categorical("country", private=True), Numeric("price", missing="median"),
    )
    tasks = (Task("click"), Task("kind", kind="multiclass"), Task("stars", kind="regression"))
    return TrainConfig(
        schema=Schema(context=(Text("query"), Text("note", private=True)), candidate=candidate, tasks=tasks),
        data=Data(log=Table("log.csv"), group_by="request", user="user", split=Split(column="request")),
        tokenizer=Tokenizer(vocab_size=200),
        model=Model(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2),
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=3e-3),
        evaluate=Evaluate(slices=("brand", "price")),
        max_steps=20,
        log_every=5,
    )
"""
HOSTILE = "<script>alert(1)</script>"
SECRET, COUNTRY = "hushword", "atlantis"
VOID = {"meta", "input", "br", "hr", "link", "img"}
"""Elements without an end tag; those of SVG end themselves."""


class Page(HTMLParser):
    """The elements and texts of a page; fails where an element is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.texts.append(data)


def make_rows(count: int):
    rng = np.random.default_rng(0)
    yield ("request", "user", "query", "note", "title", "brand", "country", "price", "click", "kind", "stars")
    for row in range(count):
        brand, clicked = rng.integers(0, 3), rng.random()
        yield (
            f"r{row // 3}",
            f"u{row // 3 % 40}",
            f"{HOSTILE} red {row // 3 % 7}",
            SECRET,
            f"coat & hat {brand} {HOSTILE}",
            f"<b>brand {brand}</b>",
            COUNTRY,
            "" if row % 9 == 0 else f"{rng.lognormal(2, 1):.2f}",
            int(clicked < (0.2, 0.4, 0.7)[brand]),
            ("shoe", "<i>hat</i>", "coat")[(brand + (rng.random() < 0.2)) % 3],
            f"{1 + brand + rng.random():.2f}",
        )


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(make_rows(1800))
    (folder / "shop.py").write_text(CONFIG)
    done = command("train", "--config", "shop.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "report: runs/shop/report.html" in done.stdout
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "runs/shop/report.html").read_text()


def test_the_page_is_well_formed_and_needs_nothing_else(text):
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "b", "i"} - {"i"} and "svg" in tags
    assert all(attrs.get("class", "").startswith("key") for tag, attrs in page.elements if tag == "i")
    references = [attrs[name] for _, attrs in page.elements for name in ("href", "src") if name in attrs]
    assert references and all(reference.startswith("#") for reference in references)
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {reference[1:] for reference in references} <= ids
    assert "url(" not in text and "@import" not in text and len(text) < 2 * 2**20


def test_a_screen_reader_finds_its_way(text):
    page = Page(text)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(attrs.get("role") == "img" and attrs["aria-label"] for tag, attrs in page.elements if tag == "svg")
    assert all("scope" in attrs for tag, attrs in page.elements if tag == "th")
    assert [tag for tag, _ in page.elements].count("caption") == [tag for tag, _ in page.elements].count("table")
    assert ("html", {"lang": "en"}) in page.elements


def test_every_metric_of_the_report_is_there_as_text(folder, text):
    found = json.loads((folder / "runs/shop/report.json").read_text())
    cells = {part.strip() for part in Page(text).texts}
    for split in ("valid", "test"):
        shown = report.metric_names({"model": found[split], **found[f"{split}_references"]})
        assert {"auc", "kind/accuracy", "stars/rmse"} <= {*shown}
        for key in shown:
            assert key in cells and report.cell(key, found[split]) in cells
        for low, high in found[f"{split}_intervals"].values():
            assert report.interval_text(low, high) in cells
        assert [*found[f"{split}_slices"]][:2] == ["brand", "price"]
        for name, of in found[f"{split}_slices"].items():
            assert f"By {name}" in cells and {group["name"] for group in of["groups"]} <= cells


def test_the_curves_of_training_are_there(folder, text):
    lines = [json.loads(line) for line in (folder / "runs/shop/metrics.jsonl").read_text().splitlines()]
    cells = {part.strip() for part in Page(text).texts}
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 4 and {"Training loss", "Validation", *(f"{loss:.4f}" for loss in losses)} <= cells


def test_texts_are_escaped_and_categories_named(text):
    assert HOSTILE not in text and "<b>" not in text and "<i>hat" not in text
    plain = unescape(text)
    assert "brand: <b>brand" in plain and "script" in plain and "<i>hat</i>" in plain
    assert "coat & hat 1" in plain  # what is not private is shown


def test_errors_have_their_reasons(text):
    assert re.search(r"because of [^<]+ [+-]\d\.\d\d", text)


def test_private_values_are_nowhere(text):
    assert COUNTRY not in text and "country: (private)" in text
    assert SECRET not in text.replace(" ", "") and "red" not in Page(text).texts and "text: (private)" in text


def test_evaluate_writes_a_page_of_a_split_and_of_files(folder, command):
    for given in (("--split", "valid"), ("--input", "log.csv")):
        done = command("evaluate", "--run", "runs/shop", *given, "--report", "out/new.html", cwd=folder)
        assert done.returncode == 0 and "report: out/new.html" in done.stdout, done.stderr
        assert "by brand" in done.stdout
        page = (folder / "out/new.html").read_text()
        Page(page)
        assert f"The {'valid' if given[0] == '--split' else 'evaluated'} split" in page and HOSTILE not in page


def test_a_private_feature_is_no_slice(folder, command):
    done = command("evaluate", "--run", "runs/shop", "--evaluate.slices", "country", cwd=folder)
    assert done.returncode == 2 and "found 'country'" in done.stderr
