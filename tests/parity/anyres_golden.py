#!/usr/bin/env python3
"""Writes anyres.safetensors: features of all tiles of some pictures of tests/fixtures, as transformers makes them.

Run by hand when cases are to be added (needs torch and transformers; made with transformers 5.23.0, Pillow 12.0.0):
    python tests/parity/anyres_golden.py
Per picture: [tiles * P, Dv], the overview first, hidden state -2 of clip-tower without the class token; and "grid": the
canvases [N, 2], width first. transformers writes the canvases of image_grid_pinpoints with the height first.
"""
import pathlib
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"
SIDE = 56
GRID = [(SIDE * width, SIDE * height) for width, height in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
PICTURES = ("gray.png", "palette.png", "plain.png", "rgb16.png", "rgba.png", "small_upscale.png", "tall_37x200.png")


def main():
    config = CLIPVisionConfig.from_pretrained(FIXTURES / "clip-tower")
    weights = torch.load(FIXTURES / "clip-tower/pytorch_model.bin", weights_only=False)
    tower = CLIPVisionModel(config).eval()
    prefixed = next(iter(tower.state_dict())).startswith("vision_model.")
    own = OrderedDict((name if prefixed else name.removeprefix("vision_model."), value) for name, value in weights.items()
                      if name.startswith("vision_model.") and "position_ids" not in name)
    print(tower.load_state_dict(own, strict=False))
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                                           image_grid_pinpoints=[[height, width] for width, height in GRID])
    tensors = {"grid": torch.tensor(GRID, dtype=torch.int64)}
    for name in PICTURES:
        image = Image.open(FIXTURES / "images" / name)
        image = Image.fromarray(np.asarray(image.convert("RGB")))
        pixels = torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0]))
        with torch.no_grad():
            hidden = tower(pixels.float(), output_hidden_states=True).hidden_states[-2][:, 1:]
        tensors[name] = hidden.flatten(0, 1).contiguous()
        print(name, image.size, list(tensors[name].shape))
    save_file(tensors, HERE / "anyres.safetensors")


if __name__ == "__main__":
    main()
