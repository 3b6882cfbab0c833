#!/usr/bin/env python3
"""Writes next.safetensors and next_layout.json: what transformers' LLaVA-NeXT (LLaVA-1.6) makes of tests/fixtures/tiny-llava.

Run by hand when cases are to be added (needs torch and transformers; made with transformers 5.23.0, Pillow 12.0.0):
    python tests/parity/next_golden.py
The model is tiny-llava with `image_newline`, drawn here, and canvases of tiles of 56 pixels. next.safetensors:
    image_newline [D]; grid [N, 2], width first
    CASE/input_ids     -200 for each picture (pictures of each case: CASES)
    CASE/tokens        image tokens of each picture
    CASE/logits [6, V] of the last six positions, float32
    CASE/greedy        the 12 likeliest tokens, one after the other, end token ignored
CASE is of a LLaMA decoder; "mistral/one" is the same with the settings of Mistral 7B Instruct 0.2 (theta 1e6, no window).
next_layout.json:
    layouts: for a picture's size (width first), which rows of its features become image tokens, in order; -1 is the newline
    counts: [width, height, image tokens] on the published canvases with tiles of 336 pixels and 24 x 24 patches
"""
import json
import pathlib
import random
import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
SIDE, IMAGE = 56, 1000
SHAPES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
GRID = [(SIDE * width, SIDE * height) for width, height in SHAPES]
CASES = {"one": ["tall_37x200.png"], "two": ["plain.png", "tall_37x200.png"], "small": ["small_upscale.png", "gray.png", "rgba.png"]}
KNOWN = 1000  # words of the tokenizer; rows behind them are padding


def pinpoints(grid):
    """As transformers writes them."""
    return [[height, width] for width, height in grid]


def model_of(newline, text):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        config = json.loads((FIXTURES / "tiny-llava/config.json").read_text())
        config.update(model_type="llava_next", architectures=["LlavaNextForConditionalGeneration"],
                      image_grid_pinpoints=pinpoints(GRID))
        config["text_config"].update(text)
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(FIXTURES / "tiny-llava/generation_config.json", folder)
        tensors = load_file(FIXTURES / "tiny-llava/model.safetensors")
        save_file({**tensors, "image_newline": newline}, folder / "model.safetensors", metadata={"format": "pt"})
        model, told = LlavaNextForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
        print({key: value for key, value in told.items() if value})
        return model.float().eval()


def answer(model, processor, names):
    """Prompt, image tokens of its pictures, last logits and greedy answer."""
    images = []
    for name in names:
        image = Image.open(FIXTURES / "images" / name)
        images.append(Image.fromarray(np.asarray(image.convert("RGB"))))
    tiles, sizes = [], []
    for image in images:
        made = processor(image, return_tensors="pt")
        tiles.append(torch.as_tensor(np.asarray(made["pixel_values"][0])).float())
        sizes.append([image.height, image.width])
    sizes = torch.tensor(sizes)
    pixels = torch.cat(tiles)
    with torch.no_grad():
        tokens = [len(rows) for rows in model.get_image_features(pixels, sizes).pooler_output]
    ids, expanded = [1, 310], [1, 310]
    for number, count in enumerate(tokens):
        ids += [-200, 400 + 7 * number, 55]
        expanded += [IMAGE] * count + [400 + 7 * number, 55]
    ids += [270, 611, 32]
    expanded += [270, 611, 32]
    greedy, last = [], None
    for _ in range(12):
        with torch.no_grad():
            logits = model(torch.tensor([expanded + greedy]), pixel_values=pixels, image_sizes=sizes).logits[0].float()
        if last is None:
            last = logits[-6:].clone()
        best = logits[-1].topk(2)
        assert best.values[0] - best.values[1] > 1e-2 and best.indices[0] < KNOWN, (names, best)
        greedy.append(int(best.indices[0]))
    print(names, sizes.tolist(), tokens, greedy)
    return {"input_ids": torch.tensor(ids), "tokens": torch.tensor(tokens), "logits": last.contiguous(), "greedy": torch.tensor(greedy)}


def packed(size, grid, side, patches):
    """Numbers of the rows of a picture's features in the order of its image tokens."""
    config = SimpleNamespace(image_grid_pinpoints=pinpoints(grid), vision_config=SimpleNamespace(image_size=side, patch_size=side // patches))
    width, height = size
    tiles = image_size_to_num_patches([height, width], config.image_grid_pinpoints, side)
    rows = torch.arange(tiles * patches * patches, dtype=torch.float32).view(tiles, patches * patches, 1)
    result, _ = LlavaNextModel.pack_image_features(SimpleNamespace(config=config), [rows], torch.tensor([[height, width]]), "default",
                                                   torch.tensor([-1.0]))
    return [int(value) for value in result[0].flatten()]


def main():
    torch.manual_seed(5)
    newline = torch.randn(96) / 96**0.5
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                                           image_grid_pinpoints=pinpoints(GRID))
    tensors = {"image_newline": newline, "grid": torch.tensor(GRID)}
    llama = model_of(newline, {})
    for case, names in CASES.items():
        tensors.update({f"{case}/{key}": value for key, value in answer(llama, processor, names).items()})
    mistral = model_of(newline, {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "rope_theta": 1e6, "sliding_window": None})
    tensors.update({f"mistral/one/{key}": value for key, value in answer(mistral, processor, CASES["one"]).items()})
    save_file(tensors, HERE / "next.safetensors")

    draw = random.Random(7)
    sizes = [(1, 1), (56, 56), (112, 112), (57, 55), (1, 999), (999, 1), (3, 100), (100, 3), (168, 56), (56, 168), (37, 200), (300, 41)]
    sizes += [(draw.randint(1, 400), draw.randint(1, 400)) for _ in range(28)]
    layouts = [{"size": size, "rows": packed(size, GRID, SIDE, 4)} for size in sizes]
    published = [(336 * width, 336 * height) for width, height in SHAPES]
    sizes += [(draw.randint(1, 5000), draw.randint(1, 5000)) for _ in range(300)]
    sizes += [(49 * k, 49 * k + d) for k in range(1, 40) for d in (-1, 0, 1)]  # where floating point is short of whole numbers
    counts = [[*size, len(packed(size, published, 336, 24))] for size in sizes]
    lines = ",\n".join(json.dumps(layout) for layout in layouts)
    (HERE / "next_layout.json").write_text(f'{{"layouts": [\n{lines}],\n"counts": {json.dumps(counts)}}}\n')


if __name__ == "__main__":
    main()
