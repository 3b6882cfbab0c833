#!/usr/bin/env python3
"""What tiles are worth: pictures of several shapes, learnt in tiles (LLaVA-1.6) and padded to a square (LLaVA-1.5).

    tiles_vs_pad.py [--pictures 1200] [--steps 150] [--world FOLDER] [--json FILE]

Scenes of 96 x 96 pixels lie somewhere on pictures of 288 x 96, 96 x 288 or 192 x 192 in the colour of their background, with those of their
questions that do not ask for a place. The shipped model is tuned on them with `image_mode=pad` and with `image_mode=anyres`, on the same
records in the same order; prints loss and share of right tokens of the answers about scenes of another seed after every 50 steps. The same
--world goes on. LLAVA_BIN_DIR: folder of the programs (default build/release/bin)."""
import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from bench import BIN, ROOT, need

need("PIL")
from PIL import Image  # noqa: E402

SHAPES = ((288, 96), (96, 288), (192, 192))
PLACE = re.compile(r"top|bottom|[Ww]here|on the (left|right)\?|And|corner|middle|\bit\b")  # of the scene, not of the picture
HELD_OUT = 200


def run(program, *arguments):
    done = subprocess.run([str(BIN / program), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{program} ended with {done.returncode}")
    return done.stdout.strip()


def questions(turns):
    kept = []
    for question, answer in zip(turns[::2], turns[1::2]):
        text = question["value"].replace("<image>", "").strip()
        if not PLACE.search(text):
            kept += [{"from": "human", "value": ("" if kept else "<image>\n") + text}, answer]
    return kept


def draw(folder, count, seed):
    """Data and pictures in `folder`."""
    if (folder / "data.json").exists():
        return
    run("llava-datagen", "scenes", "--out", folder / "scenes", "--count", count, "--seed", seed, "--stage2", "--kinds", "conversation", "--overwrite")
    chance, records = random.Random(seed), []
    (folder / "images").mkdir(exist_ok=True)
    for record in json.loads((folder / "scenes/stage2.json").read_text()):
        if not (turns := questions(record["conversations"])):
            continue
        scene = Image.open(folder / "scenes/images" / record["image"]).convert("RGB")
        picture = Image.new("RGB", chance.choice(SHAPES), scene.getpixel((0, 0)))
        picture.paste(scene, tuple(chance.randint(0, there - own) for there, own in zip(picture.size, scene.size)))
        picture.save(folder / "images" / record["image"])
        records.append({"id": record["id"], "image": record["image"], "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))


def train(world, mode, steps):
    """[{step, loss, accuracy}] of the evaluations."""
    settings = {"model": ROOT / "deploy/models/emoji", "tower": ROOT / "deploy/models/emoji-tower", "image_mode": mode,
                "data": world / "train/data.json", "images": world / "train/images", "held_out_data": world / "held_out/data.json",
                "held_out_images": world / "held_out/images", "batch_size": 16, "packing": "none", "steps": steps, "evaluate_every": 50,
                "save_every": 50, "learning_rate": 3e-4, "feature_cache.memory_mib": 512}
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run("llava-train", "finetune", "--recipe", ROOT / "deploy/training/finetune.json", *arguments, "--out", world / mode)
    lines = [json.loads(line) for line in (world / mode / "metrics.jsonl").read_text().splitlines()]
    return [{"step": line["step"], "loss": line["evaluation"]["held_out_loss"], "accuracy": line["evaluation"]["held_out_accuracy"]}
            for line in lines if line.get("evaluation")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--world", type=pathlib.Path, help="folder that keeps data and runs (default: a temporary one)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llava-tiles-") as temporary:
        world = options.world or pathlib.Path(temporary)
        for name, count, seed in (("train", options.pictures, 71), ("held_out", HELD_OUT, 72)):
            (world / name).mkdir(parents=True, exist_ok=True)
            draw(world / name, count, seed)
        figures = {mode: train(world, mode, options.steps) for mode in ("pad", "anyres")}
    print("step  " + "".join(f"{mode:>20}" for mode in figures))
    for rows in zip(*figures.values()):
        print(f"{rows[0]['step']:4}  " + "".join(f"{row['loss']:12.3f} {100 * row['accuracy']:5.1f} %" for row in rows))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
