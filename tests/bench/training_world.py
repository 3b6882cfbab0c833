"""Models and data that both sides of train_vs_transformers.py read: llava-hf folders and LLaVA JSON."""

import json
import pathlib
import random
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "deploy/models"


def newest(name):
    return max((MODELS / name).iterdir(), key=lambda version: int(version.name))


def llava_config(text, vision, image_token):
    """config.json of a llava-hf folder from our own names of the shapes."""
    return {
        "image_token_index": image_token, "projector_hidden_act": "gelu", "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "tie_word_embeddings": text["tie_word_embeddings"],
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2,
        "text_config": {
            "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "pad_token_id": 0,
            "hidden_size": text["hidden_size"], "intermediate_size": text["intermediate_size"],
            "num_hidden_layers": text["num_layers"], "num_attention_heads": text["num_heads"],
            "num_key_value_heads": text["num_kv_heads"], "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["max_position_embeddings"],
            "rms_norm_eps": text["rms_norm_eps"], "tie_word_embeddings": text["tie_word_embeddings"],
            "bos_token_id": 1, "eos_token_id": 2},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_act": "quick_gelu", "projection_dim": 64,
            "hidden_size": vision["hidden_size"], "intermediate_size": vision["intermediate_size"],
            "num_hidden_layers": vision["num_layers"], "num_attention_heads": vision["num_heads"],
            "image_size": vision["image_size"], "patch_size": vision["patch_size"],
            "layer_norm_eps": 1e-5}}


class World:
    """Makes things in `folder` when they are first asked for; what is there is taken."""

    def __init__(self, folder, bin_dir, python):
        self.folder, self.bin_dir, self.python = folder, bin_dir, python
        folder.mkdir(parents=True, exist_ok=True)

    # ---- models

    def model(self, shape):
        """(folder, parameters of each part)"""
        folder = self.folder / f"model-{shape}"
        facts = folder / "parts.json"
        if not facts.exists():
            wanted = self.folder / f"model-{shape}.json"
            wanted.write_text(json.dumps(self.emoji() if shape == "default" else self.llama160m()))
            peer = pathlib.Path(__file__).with_name("transformers_peer.py")
            done = subprocess.run([self.python, peer, "make", wanted, folder], check=True, text=True,
                                  stdout=subprocess.PIPE)
            facts.write_text(done.stdout.splitlines()[-1])
        return folder, json.loads(facts.read_text())

    @staticmethod
    def tokenizer():
        return [str(newest("emoji") / name) for name in ("tokenizer.model", "tokenizer_config.json")]

    def emoji(self):
        """The shipped default: decoder 4 x 128, vocabulary 1000, tower 5 x 160 with 36 patches."""
        text = json.loads((newest("emoji") / "config.json").read_text())["decoder"]
        vision = json.loads((newest("emoji-tower") / "config.json").read_text())["vision"]
        return {"config": llava_config(text, vision, image_token=6), "tokenizer": self.tokenizer(),
                "weights": [str(newest(name) / "model.safetensors") for name in ("emoji", "emoji-tower")]}

    def llama160m(self):
        """The shape known as llama-160m (12 x 768, inner 3072, vocabulary 32000, nothing tied), random.
        Its tower is small, as features are kept, but gives as many image tokens as the paper's: 256."""
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12,
                "num_kv_heads": 12, "vocab_size": 32000, "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
        vision = {"hidden_size": 384, "intermediate_size": 1536, "num_layers": 6, "num_heads": 6,
                  "image_size": 224, "patch_size": 14}
        return {"config": llava_config(text, vision, image_token=6), "tokenizer": self.tokenizer(),
                "weights": []}

    # ---- data

    def scenes(self):
        """Folder with images/ and stage2.json: the dialogues of 40 scenes, as the default was trained on."""
        folder = self.folder / "scenes"
        if not (folder / "dataset.json").exists():
            subprocess.run([self.bin_dir / "llava-datagen", "scenes", "--out", folder, "--seed", "102",
                            "--count", "40", "--stage2", "--dialogues", "9"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return folder

    def records(self):
        return json.loads((self.scenes() / "stage2.json").read_text())

    def write(self, name, records):
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(records))
        return file

    def dialogues(self, batch, batches, grouped):
        """Records of the scenes, a dialogue each, in an order of chance; `grouped`: batches of equals."""
        records = self.records()
        random.Random(1).shuffle(records)
        name = f"dialogues-{'grouped' if grouped else 'shuffled'}"
        return self.write(name, chosen(records, batch, batches, grouped))

    def packed(self):
        """The same scenes whole, for rows that share their picture; and shuffled for those who do not pack."""
        records = self.records()
        shuffled = list(records)
        random.Random(1).shuffle(shuffled)
        return self.write("scenes", records), self.write("scenes-shuffled", shuffled)

    def conversations(self, batch, batches, grouped):
        """Conversations about as long as LLaVA-Instruct's: 60 to 420 words behind 256 image tokens."""
        chance = random.Random(2)
        by_picture = {}
        for record in self.records():
            by_picture.setdefault(record["image"], []).append(record)
        records = []
        for number in range(32 * batch):
            image = chance.choice(sorted(by_picture))
            goal = chance.triangular(60, 420, 160)
            turns = []
            while words_of(turns) < goal:
                turns += [{**turn, "value": turn["value"].replace("<image>", "").strip()}
                          for turn in chance.choice(by_picture[image])["conversations"]]
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            records.append({"id": str(number), "image": image, "conversations": turns})
        name = f"conversations-{'grouped' if grouped else 'shuffled'}"
        return self.write(name, chosen(records, batch, batches, grouped))


def words_of(turns):
    return sum(len(turn["value"].split()) for turn in turns)


def chosen(records, batch, batches, grouped):
    """As many batches as asked for: the first ones, or if `grouped` such of records of about the same
    length, shorter and longer ones: little padding for those who pad, as LLaVA's script does by default."""
    if not grouped:
        return records[:batch * batches]
    ordered = sorted(records, key=lambda record: words_of(record["conversations"]))
    groups = [ordered[i:i + batch] for i in range(0, len(ordered) - batch + 1, batch)]
    return [record for i in range(batches)
            for record in groups[(2 * i + 1) * len(groups) // (2 * batches)]]
