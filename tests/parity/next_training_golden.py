#!/usr/bin/env python3
"""Writes next_training.safetensors: loss, gradients and one step of transformers' LLaVA-NeXT on pictures of several shapes.

Run by hand when cases are to be added (needs torch and transformers; made with transformers 5.23.0, torch 2.11.0, Pillow 12.0.0):
    python tests/parity/next_training_golden.py
The model is that of next_golden.py in float32; the tower is frozen, all else is trained. One batch of SAMPLES, padded on the right, mean
over the labelled tokens; one step of AdamW (0.9, 0.999, 1e-8, no decay) at RATE behind clipping to a norm of 1. Names are ours:
    SAMPLE/input_ids, SAMPLE/labels      -200 for each picture (pictures of each sample: SAMPLES)
    loss, grad_norm, loss_after          scalars
    loss_alone [N]                       of each sample by itself
    grad_norms/PARAMETER                 of every one
    grad/PARAMETER, after/PARAMETER      of small ones, and of large ones the corner that CORNER leaves
"""
import pathlib

import numpy as np
import torch
from next_golden import FIXTURES, GRID, IMAGE, SIDE, model_of, pinpoints
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

HERE = pathlib.Path(__file__).resolve().parent
# Pictures, question and answer of each.
SAMPLES = {
    "tall": (["tall_37x200.png"], [310, 401, 55], [611, 32, 2]),
    "two": (["plain.png", "gray.png"], [270, 407, 91, 66], [120, 611, 77, 38, 2]),
    "text": ([], [300, 310, 62], [540, 2]),
}
RATE = 1e-3
CORNER = 12  # rows and columns
KEPT = ("model.image_newline", "model.mm_projector.", "model.layers.0.", "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight")


def our_name(name):
    for theirs, ours in (("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
                         ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."), ("model.language_model.", "model.")):
        name = name.replace(theirs, ours)
    return name


def tiles_of(processor, name):
    image = Image.open(FIXTURES / "images" / name)
    image = Image.fromarray(np.asarray(image.convert("RGB")))
    made = processor(image, return_tensors="pt")
    return torch.as_tensor(np.asarray(made["pixel_values"][0])).float(), [image.height, image.width]


def batch_of(model, processor, names):
    """What forward takes, of these samples."""
    rows, tiles, sizes = [], [], []
    for name in names:
        pictures, question, answer = SAMPLES[name]
        ids = [1]
        for picture in pictures:
            made, size = tiles_of(processor, picture)
            tiles.append(made)
            sizes.append(size)
            with torch.no_grad():
                ids += [IMAGE] * len(model.get_image_features(made, torch.tensor([size])).pooler_output[0])
        ids += question
        rows.append((ids + answer, [-100] * len(ids) + answer))
    longest = max(len(ids) for ids, _ in rows)
    batch = {"input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows]),
             "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
             "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])}
    if tiles:
        batch.update(pixel_values=torch.cat(tiles), image_sizes=torch.tensor(sizes))
    return batch


def corner(tensor):
    tensor = tensor.detach()
    return (tensor[:CORNER, :CORNER] if tensor.dim() == 2 and tensor.numel() > 4096 else tensor).clone().contiguous()


def main():
    newline = load_file(HERE / "next.safetensors")["image_newline"]
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                                           image_grid_pinpoints=pinpoints(GRID))
    model = model_of(newline, {})
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
        if parameter.requires_grad:
            trained[our_name(name)] = parameter
    tensors = {}
    for name, (pictures, question, answer) in SAMPLES.items():
        ids = [1] + [-200] * len(pictures) + question
        tensors[f"{name}/input_ids"] = torch.tensor(ids + answer)
        tensors[f"{name}/labels"] = torch.tensor([-100] * len(ids) + answer)
    with torch.no_grad():
        tensors["loss_alone"] = torch.stack([model(**batch_of(model, processor, [name])).loss for name in SAMPLES])
    batch = batch_of(model, processor, list(SAMPLES))
    loss = model(**batch).loss
    loss.backward()
    tensors["loss"] = loss.detach().clone()
    kept = [name for name in trained if name.startswith(KEPT)]
    for name, parameter in trained.items():
        tensors[f"grad_norms/{name}"] = parameter.grad.norm()
    tensors.update({f"grad/{name}": corner(trained[name].grad) for name in kept})
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    tensors["grad_norm"] = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).detach().clone()
    optimizer.step()
    tensors.update({f"after/{name}": corner(trained[name]) for name in kept})
    with torch.no_grad():
        tensors["loss_after"] = model(**batch).loss
    print({name: tensors[name].tolist() for name in ("loss", "loss_alone", "grad_norm", "loss_after")}, len(trained), "parameters")
    save_file(tensors, HERE / "next_training.safetensors")


if __name__ == "__main__":
    main()
