"""Writes a CLIP vision tower with random weights in bfloat16, as a folder that llava-vision serves.

    random_tower.py OUT [--large]

With --large the shape of ViT-L/14 at 336, else a tiny one. Needs numpy. Equal calls give equal files."""
import argparse
import json
import math
import pathlib
import struct

import numpy

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 56, "patch_size": 14}


def shapes(config):
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    norm = lambda name: {f"{name}.weight": [width], f"{name}.bias": [width]}
    linear = lambda name, out, into: {f"{name}.weight": [out, into], f"{name}.bias": [out]}
    found = {"embeddings.class_embedding": [width], "embeddings.patch_embedding.weight": [width, 3, patch, patch],
             "embeddings.position_embedding.weight": [(config["image_size"] // patch) ** 2 + 1, width]}
    found |= norm("pre_layrnorm") | norm("post_layernorm")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{layer}self_attn.{name}", width, width)
        found |= norm(layer + "layer_norm1") | norm(layer + "layer_norm2")
        found |= linear(layer + "mlp.fc1", inner, width) | linear(layer + "mlp.fc2", width, inner)
    return {"vision_model." + name: shape for name, shape in found.items()}


def bfloat16(values):
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype("<u2")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    config = LARGE if options.large else TINY
    side = config["image_size"]
    options.out.mkdir(parents=True)
    (options.out / "config.json").write_text(json.dumps({
        "architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {
            "model_type": "clip_vision_model", "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            **config}}))
    (options.out / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]}))

    # Drawn once and taken over and over: the values matter to nobody, but for not being zeros.
    drawn = bfloat16(0.02 * numpy.random.default_rng(1).standard_normal(1 << 22))
    header, tensors, end = {}, [], 0
    for number, (name, shape) in enumerate(shapes(config).items()):
        count = math.prod(shape)
        if name.endswith("norm.weight") or "layer_norm" in name and name.endswith("weight"):
            values = bfloat16(numpy.ones(count))
        else:
            values = numpy.resize(drawn[7 * number % drawn.size:], count)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * count]}
        end += 2 * count
        tensors.append(values)
    text = json.dumps(header).encode()
    with open(options.out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors:
            file.write(values.tobytes())


if __name__ == "__main__":
    main()
