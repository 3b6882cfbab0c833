"""Copies of a checkpoint as versions of a model, whole or damaged. Standard library only."""
import hashlib
import json
import os
import shutil

WEIGHTS = "model.safetensors"


def publish_copy(source, model, version, damage=None):
    """The folder `source` as that version in the folder `model`; as `damage`, told the folder of the draft, leaves it."""
    draft = model / f".tmp-{version}"
    shutil.copytree(source, draft)
    edit_json(draft / "manifest.json", lambda manifest: manifest.update(version=version))
    if damage:
        damage(draft)
    return draft.rename(model / str(version))


def edit_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def reseal(folder, name=WEIGHTS):
    """The manifest says what the file is now."""
    data = (folder / name).read_bytes()
    seal = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_json(folder / "manifest.json", lambda manifest: manifest["files"].update({name: seal}))


def cut_short(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def wrong_digest(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def no_numbers(folder):
    """In the last tensor, and the manifest says so."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1024:] = b"\xff" * 1024  # NaN in every floating-point format
    (folder / WEIGHTS).write_bytes(data)
    reseal(folder)
