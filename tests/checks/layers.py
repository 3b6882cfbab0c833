"""The one-way rule: a file includes only what its room may see (docs/architecture.md)."""

import re

from source_tree import CPP, files

CORE = ["model/digest", "model/config", "model/text", "model/image", "model/checkpoint",
        "model/ops", "model/nn", "model/llava"]
WORKER = ["server/runtime", "server/wire", "server/device", "server/lifecycle",
          "llava/v1"] + CORE

# Room -> what it may include besides itself: rooms, or single headers of them.
ALLOWED = {
    "model/digest": [],
    "model/config": [],
    "model/text": ["model/digest"],
    "model/grammar": ["model/text"],
    "model/image": ["model/config"],
    "model/checkpoint": ["model/config", "model/text", "model/digest"],
    "model/ops": ["model/config"],
    "model/nn": ["model/ops", "model/config", "model/checkpoint"],
    "model/llava": ["model/nn", "model/ops", "model/config", "model/text", "model/checkpoint",
                    "model/image"],
    "model/data": ["model/config", "model/text", "model/image", "model/checkpoint", "model/progress"],
    "model/progress": [],
    "model/openai": ["model/digest", "model/text", "model/progress",
                     "model/checkpoint/durable_file.h"],
    "model/chart": ["model/checkpoint/durable_file.h"],
    "model/eval": CORE + ["model/data", "model/progress", "model/chart", "model/openai"],
    "model/train": CORE + ["model/data", "model/eval", "model/progress", "model/chart"],
    "model/datagen": CORE + ["model/data", "model/progress", "model/openai"],
    "model/tools": CORE + ["model/progress"],
    "server/runtime": [],
    "server/wire": ["server/runtime", "llava/v1", "model/digest", "model/grammar"],
    "server/device": ["server/runtime", "model/checkpoint", "model/ops/feature.h", "model/ops/thread_stream.h"],
    "server/lifecycle": ["server/runtime", "server/wire", "llava/v1", "model/digest",
                         "model/checkpoint/manifest.h", "model/checkpoint/repository.h"],
    "server/vision": WORKER + ["inference"],
    "server/llm": WORKER + ["model/grammar"],
    "server/gateway": ["server/runtime", "server/wire", "llava/v1", "model/digest",
                       "model/image/header.h"],
    "client": ["llava/v1"],
}
OURS = ("proto/", "llava/", "inference/", "model/", "server/", "client/", "tests/", "deploy/", "docs/")

# Room prefix -> libraries that it may not know.
FOREIGN = {
    "model/": ("grpcpp/", "grpc/", "absl/", "google/", "spdlog/", "prometheus/"),
    "client": ("ATen/", "c10/", "torch/", "opencv2/"),
    "server/runtime": ("ATen/", "c10/", "torch/", "opencv2/"),
    "server/wire": ("ATen/", "c10/", "torch/", "opencv2/"),
    "server/lifecycle": ("ATen/", "c10/", "torch/", "opencv2/"),
    "server/gateway": ("ATen/", "c10/", "torch/", "opencv2/"),
    "server/": ("opencv2/",),
    "": ("torch/torch.h", "torch/extension.h", "ATen/ATen.h"),
}


def room_of(path, rooms=ALLOWED):
    return max((r for r in rooms if path == r or path.startswith(r + "/")), key=len, default=None)


def problems(root):
    found = []
    for name in files(root, CPP):
        if name.parts[0] in ("tests",):
            continue  # may see everything
        where = name.as_posix()
        room = room_of(where)
        if room is None:
            found.append(f"{where}: its folder is not in the table of tests/checks/layers.py")
            continue
        text = (root / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
            if not match:
                continue
            included = match[2]
            place = f"{where}:{number}"
            if match[1] == '"' and (root / name).parent.joinpath(included).is_file():
                found.append(f"{place}: {included} must be included by its path from the root")
            for prefix, libraries in FOREIGN.items():
                if where.startswith(prefix) and included.startswith(libraries):
                    found.append(f"{place}: {prefix or 'nothing'} may not include {included}")
            if not included.startswith(OURS) or room_of(included) == room:
                continue
            if not any(included == a or included.startswith(a + "/") for a in ALLOWED[room]):
                found.append(f"{place}: {room} may not include {included}")
    return found
