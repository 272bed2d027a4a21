"""Hugging Face folders: the local folder if it exists, else a download from the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from srsjax.errors import InputError


def model_folder(source: str, files: Sequence[str], expected: str) -> Path:
    """The local folder of a model.

    Args:
      source: a folder, or a hub name (`google-bert/bert-base-uncased`), with `@` and a branch, tag or commit where it
        is not to be the newest state of the main branch.
      files: patterns of the files to download.
      expected: what a folder must hold, for the message.

    Raises:
      InputError: no such folder, and the hub has no such model or cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?", source):
        raise InputError(f"{source}: no such folder; give a folder with {expected}, or a hub name")
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*files]))
    except Exception as error:  # the hub's client raises its own exceptions, httpx's and OSError
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source}: no such folder, and the Hugging Face hub did not give it ({type(error).__name__}: {reason}); "
            f"check the name and the connection, or give a folder with {expected}"
        ) from None


def pinned(source: str, folder: Path) -> str:
    """A hub name with the commit that its files in `folder`, from `model_folder`, are of; another source as it is."""
    if folder.parent.name != "snapshots" or Path(source).expanduser().exists():
        return source
    return f"{source.partition('@')[0]}@{folder.name}"


def same_model(asked: str, pinned: str) -> bool:
    """Whether a source with a commit (`pinned`) is what another one asks for: the same name, of any commit if it names
    none."""
    return pinned in (asked, f"{asked}@{pinned.partition('@')[2]}")


def read_json(path: Path) -> dict:
    """A JSON file of a model. Raises InputError if it is missing or broken."""
    if not path.exists():
        raise InputError(f"{path.parent}: no {path.name}, expected a Hugging Face model folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); get the file again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected a JSON object; get the file again")
    return found
