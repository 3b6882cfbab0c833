"""Hugging Face transformers + PyTorch as the other side of train_vs_transformers.py. Runs in the
environment of requirements.txt; the benchmark starts it.

    transformers_peer.py make CONFIG.json FOLDER     writes a llava-hf folder
    transformers_peer.py train JOB.json              trains, a turn of steps for each line of standard input

What a careful user would do: float32 masters with autocast, fused AdamW, sdpa attention, no gradient
through the tower, everything that depends on the data alone prepared before the clock starts."""

import json
import pathlib
import re
import resource
import shutil
import sys
import time

import numpy
import sentencepiece
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

IGNORE = -100
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MARKS = ("USER:", "ASSISTANT:", "<image>", "</s>")


# ---------------------------------------------------------------- checkpoints

def place_of(name, names):
    """Our name of a tensor -> the one in a model of transformers, whichever prefixes it has."""
    for ours, theirs in (("model.mm_projector.0.", "multi_modal_projector.linear_1."),
                         ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
                         ("vision_model.", ""), ("model.", "language_model.")):
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    found = [n for n in names if n == name or n.endswith("." + name)]
    assert len(found) == 1, f"{name} could be any of {found}"
    return found[0]


def make(config_file, folder):
    """Random weights, or those of our own repository versions."""
    wanted = json.loads(pathlib.Path(config_file).read_text())
    folder = pathlib.Path(folder)
    torch.manual_seed(1)
    config = transformers.LlavaConfig(**wanted["config"])
    model = transformers.LlavaForConditionalGeneration(config)
    if wanted.get("weights"):
        names = list(model.state_dict())
        state = {}
        for file in wanted["weights"]:
            for name, tensor in load_file(file).items():
                state[place_of(name, names)] = tensor.float()
        missing, unknown = model.load_state_dict(state, strict=False)
        missing = [n for n in missing if "lm_head" not in n and "post_layernorm" not in n]
        assert not missing and not unknown, (missing, unknown)
    model.save_pretrained(folder)
    for file in wanted["tokenizer"]:
        shutil.copy(file, folder)
    print(json.dumps({
        "language": sum(p.numel() for p in model.model.language_model.parameters()) +
                    (0 if config.text_config.tie_word_embeddings else model.lm_head.weight.numel()),
        "projector": sum(p.numel() for p in model.model.multi_modal_projector.parameters()),
        "tower": sum(p.numel() for p in model.model.vision_tower.parameters())}))


# ---------------------------------------------------------------- data

class Encoder:
    """Samples of the emoji template: loss on answers and their stop mark."""

    def __init__(self, folder, image_tokens):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.image_tokens = image_tokens
        self.special = {mark: self.pieces.piece_to_id(mark) for mark in MARKS}
        self.pattern = re.compile("(" + "|".join(map(re.escape, MARKS)) + ")")

    def ids(self, text):
        ids = []
        for part in self.pattern.split(text):
            if part == "<image>":
                ids += [self.special[part]] * self.image_tokens
            elif part in self.special:
                ids.append(self.special[part])
            elif part:
                ids += self.pieces.encode(part)
        return ids

    def __call__(self, conversations):
        ids, labels = [self.pieces.bos_id()], [IGNORE]
        for message in conversations:
            if message["from"] == "human":
                text = message["value"]
                mark = "<image>" if "<image>" in text else ""
                text = self.ids("USER:" + mark + text.replace("<image>", "").strip() + "ASSISTANT:")
                labels += [IGNORE] * len(text)
            else:
                text = self.ids(message["value"] + "</s>")
                labels += text
            ids += text
        return ids, labels


def pixels_of(file, size):
    """As CLIP prepares them: the shorter side to `size`, the middle, normalised."""
    image = Image.open(file).convert("RGB")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.BICUBIC)
    left, top = ((side - size) // 2 for side in image.size)
    array = numpy.asarray(image.crop((left, top, left + size, top + size)), dtype=numpy.float32) / 255
    array = (array - numpy.float32(MEAN)) / numpy.float32(STD)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


# ---------------------------------------------------------------- training

class Trainer:
    def __init__(self, job):
        folder = pathlib.Path(job["model"])
        torch.set_num_threads(job["threads"])
        torch.manual_seed(1)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bf16")
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa")
        self.config = self.model.config
        self.batches = self.prepare(folder, job)
        self.model.model.vision_tower = None  # its work is done: features are kept, as llava-train does
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=job["learning_rate"], weight_decay=0,
                                           fused=True)
        self.step = 0

    def prepare(self, folder, job):
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        encoder = Encoder(folder, patches)
        features = {}
        batches = []
        records = json.loads(pathlib.Path(job["data"]).read_text())
        for begin in range(0, len(records), job["batch"]):
            rows = []
            for record in records[begin:begin + job["batch"]]:
                if record["image"] not in features:
                    file = pathlib.Path(job["images"]) / record["image"]
                    features[record["image"]] = self.features(pixels_of(file, vision.image_size))
                rows.append((*encoder(record["conversations"]), features[record["image"]]))
            batches.append(self.pad(rows))
        return batches

    def features(self, pixels):
        with torch.no_grad(), self.autocast:
            states = self.model.model.vision_tower(pixels[None], output_hidden_states=True).hidden_states
            return states[self.config.vision_feature_layer][0, 1:].clone()

    def pad(self, rows):
        longest = max(len(ids) for ids, _, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORE)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, (row, row_labels, _) in enumerate(rows):
            ids[i, :len(row)] = torch.tensor(row)
            labels[i, :len(row)] = torch.tensor(row_labels)
            mask[i, :len(row)] = 1
        return {"ids": ids, "labels": labels, "mask": mask,
                "pictures": (ids == self.config.image_token_id).unsqueeze(-1),
                "features": torch.stack([features for _, _, features in rows]),
                "samples": len(rows), "padded": ids.numel(), "tokens": int(mask.sum()),
                "trained_tokens": int((labels[:, 1:] != IGNORE).sum())}

    def loss_of(self, batch):
        with self.autocast:
            embeddings = self.model.get_input_embeddings()(batch["ids"])
            pictures = self.model.model.multi_modal_projector(batch["features"])
            embeddings = embeddings.masked_scatter(batch["pictures"], pictures.to(embeddings.dtype))
            return self.model(inputs_embeds=embeddings, attention_mask=batch["mask"],
                              labels=batch["labels"], use_cache=False).loss

    def one_step(self):
        batch = self.batches[self.step % len(self.batches)]
        begin = time.perf_counter()
        loss = self.loss_of(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss, norm = loss.item(), norm.item()
        seconds = time.perf_counter() - begin
        self.step += 1
        return {"step": self.step, "loss": loss, "gradient_norm": norm, "seconds": seconds,
                **{key: batch[key] for key in ("samples", "tokens", "trained_tokens", "padded")}}


def say(value):
    print(json.dumps(value), flush=True)


def train(job_file):
    transformers.logging.set_verbosity_error()
    trainer = Trainer(json.loads(pathlib.Path(job_file).read_text()))
    say({"torch": torch.__version__, "transformers": transformers.__version__,
         "trained_parameters": sum(p.numel() for p in trainer.parameters)})
    for line in sys.stdin:
        steps = [trainer.one_step() for _ in range(int(line))]
        say({"steps": steps, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


if __name__ == "__main__":
    {"make": make, "train": train}[sys.argv[1]](*sys.argv[2:])
