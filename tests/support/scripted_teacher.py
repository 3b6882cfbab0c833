#!/usr/bin/env python3
"""A teacher for llava-datagen where no language model is at hand: an OpenAI-compatible server that reads
the captions and boxes of a prompt, and nothing else, and writes conversations, descriptions and reasoning
about them by rules. What it knows of the world is deploy/scenes-data/categories.json: what things are
called, what can be eaten, flies, lives. So it shows that the pipeline works and what its data is worth to a
model, not how well a language model writes.

    python tests/support/scripted_teacher.py [--port N] [--delay SECONDS] [--bad SHARE] [--faults SHARE]

Prints its base URL. A share of its answers is no good (cut off, refused, talking of captions, without
alternation), a share of the attempts fails (429 with and without Retry-After, 500, broken connections).
GET /stats tells how often it was asked and what for. The same prompt has the same answer."""

import argparse
import collections
import hashlib
import http.server
import json
import pathlib
import random
import re
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CATEGORIES = json.loads((ROOT / "deploy/scenes-data/categories.json").read_text(encoding="utf-8"))
KINDS = {name: category for category in CATEGORIES for name in (category["name"], category["plural"])}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
WORDS = ["None", "One", "Two", "Three", "Four"]
COUNTED = {"animal": "animals", "fruit": "fruits", "vehicle": "vehicles"}
FAULTS = ("retry", "limit", "error", "broken")


def join(words):
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def capitalized(text):
    return text[:1].upper() + text[1:]


def a(name):
    return f"{KINDS[name]['article']} {name}"


class Context:
    """What a prompt tells about a picture."""

    def __init__(self, text):
        lines = text.splitlines()
        split = lines.index("") if "" in lines else len(lines)
        self.captions = lines[:split]
        self.counts = collections.Counter()  # kinds in order of mention
        for number, name in re.findall(r"\b(an?|two|three|four) (\w+)", self.captions[0].lower()):
            if name in KINDS:
                self.counts[KINDS[name]["name"]] += NUMBERS[number]
        background = re.search(r"on an? (\w+) background", text)
        self.background = background[1] if background else None
        self.places = []  # (kind, "on the left"), one a thing, if the captions tell all of them
        for caption in self.captions:
            found = re.findall(r"\ban? (\w+) ((?:on|at|in) the [a-z ]+?)(?=,| and |\.|$)", caption.lower())
            found = [(name, place) for name, place in found if name in KINDS]
            if len(found) == self.total:
                self.places = found
        self.boxes = [(name, json.loads(numbers)) for name, numbers in
                      re.findall(r"^(\w+): (\[.*\])$", "\n".join(lines[split:]), re.M)]

    @property
    def total(self):
        return sum(self.counts.values())

    def things(self):
        return join([a(name) if n == 1 else f"{WORDS[n].lower()} {KINDS[name]['plural']}"
                     for name, n in self.counts.items()])

    def unique(self):
        return [name for name, n in self.counts.items() if n == 1]


def place_of(box):
    """Words for the middle of a box, in thirds of the picture."""
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    across, down = (words[int(m * 3 // 1)] for m, words in
                    zip(middle, (("left", "", "right"), ("top", "", "bottom"))))
    if down:
        return f"at the {down} {across}".rstrip()
    return f"on the {across}" if across else "in the center"


def facts(kind):
    """Questions about "{}" that knowledge of the world answers."""
    group = kind["group"]
    article = "" if group == "food" else "an " if group[0] in "ao" else "a "
    yes_no = {True: "Yes.", False: "No."}
    return [("What kind of thing is {}?", f"It is {article}{group}."), ("What color is {}?", f"It is {kind['colour']}."),
            ("Can you eat {}?", yes_no[kind["edible"]]), ("Can {} fly?", yes_no[kind["flies"]]),
            ("Is {} alive?", yes_no[kind["alive"]])]


def outermost(context):
    """(side, kind) where the captions leave no doubt."""
    found = []
    for side, phrase in (("left", "on the left"), ("right", "on the right"), ("top", "at the top"),
                         ("bottom", "at the bottom")):
        there = [name for name, place in context.places if side in place]
        if len(there) == 1 and context.total > 1:
            found.append((phrase, there[0]))
    return found


def conversation(context, draw):
    """Groups of turns that stay together, in random order."""
    groups = [[(draw.choice(("What is in the picture?", "What do you see?", "What does the picture show?")),
                capitalized(context.things()) + ".")]]
    for name in [*context.counts, draw.choice([c["name"] for c in CATEGORIES[:48] if c["name"] not in context.counts])]:
        wording = draw.choice(("How many {} are there?", "How many {} do you see?", "How many {} are in the picture?"))
        groups.append([(wording.format(KINDS[name]["plural"]), WORDS[context.counts[name]] + ".")])
    groups.append([("How many things are there?", WORDS[context.total] + ".")])
    group, plural = draw.choice(sorted(COUNTED.items()))
    number = sum(n for name, n in context.counts.items() if KINDS[name]["group"] == group)
    groups.append([(f"How many {plural} are there?", WORDS[number] + ".")])
    for name, answer in ((draw.choice(list(context.counts)), "Yes."),
                         (draw.choice([c["name"] for c in CATEGORIES[:48] if c["name"] not in context.counts]), "No.")):
        groups.append([(draw.choice(("Is there {} in the picture?", "Do you see {}?", "Is there {}?")).format(a(name)), answer)])
    if context.background:
        groups.append([("What color is the background?", f"It is {context.background}.")])
    for name, place in context.places:
        if context.counts[name] == 1:
            groups.append([(f"Where is the {name}?", capitalized(place) + ".")])
    for phrase, name in outermost(context):
        question, answer = draw.choice(facts(KINDS[name]))
        groups.append([(f"What is {phrase}?", capitalized(a(name)) + "."), (question.format("it"), answer)])
        question, answer = draw.choice(facts(KINDS[name]))
        groups.append([(question.format(f"the thing {phrase}"), answer)])
    if context.total == 1:
        name = next(iter(context.counts))
        groups += [[(question.format("this thing"), answer)] for question, answer in facts(KINDS[name])]
    draw.shuffle(groups)
    turns, asked = [], set()
    for group in groups:
        if len(turns) < 9 and not asked & {question for question, _ in group}:
            turns += group
            asked |= {question for question, _ in group}
    return turns


def description(context):
    things = [f"{a(name)} {place_of(box)}" for name, box in context.boxes] or [context.things()]
    return f"{capitalized(join(things))}. The background is {context.background or 'plain'}."


def reasoning(context, draw):
    """One question that takes more than naming."""
    choices = []
    for able, question, answer in (("edible", "Which thing can you eat?", "The {}, for that is the thing here to eat."),
                                   ("flies", "Which thing can fly?", "The {}, for that is the thing here that can fly.")):
        names = [name for name in context.counts if KINDS[name][able]]
        if len(names) == 1 and len(context.counts) > 1:
            choices.append((question, answer.format(names[0])))
    if len(context.counts) > 1:
        same = len({KINDS[name]["group"] for name in context.counts}) == 1
        choices.append(("Are all things of the same kind?",
                        "Yes, they are all things of the same kind." if same else "No, they are things of more than a single kind."))
    boxes = [(name, box) for name, box in context.boxes if context.counts[name] == 1]
    draw.shuffle(boxes)
    for (one, p), (other, q) in zip(boxes, boxes[1:]):
        area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (p, q)]
        if not 2 / 3 < area[0] / area[1] < 3 / 2:
            bigger = draw.choice((True, False))
            name = one if (area[0] > area[1]) == bigger else other
            choices.append((f"Which is {'bigger' if bigger else 'smaller'}, the {one} or the {other}?",
                            f"The {name}, for it takes {'more' if bigger else 'less'} room in the picture."))
        x, y = ((p[i] + p[i + 2] - q[i] - q[i + 2]) / 2 for i in (0, 1))
        if abs(y) > 0.15:
            word = "Above" if y < 0 else "Below"
            choices.append((f"Is the {one} above or below the {other}?", f"{word}, as you can see from where the things are."))
        if abs(x) > 0.15:
            side = "left" if x < 0 else "right"
            choices.append((f"On which side of the {other} is the {one}?", f"On the {side}, as you can see from where they are."))
    if not choices:
        name = next(iter(context.counts))
        question, answer = draw.choice(facts(KINDS[name]))
        choices.append((question.format("the thing in the picture"), answer[:-1] + ", as you can see in the picture."))
    return draw.choice(choices)


def dialogue(turns):
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in turns)


def answer_to(system, user):
    """The text of an answer to a prompt of llava-datagen."""
    context = Context(user)
    draw = random.Random(hashlib.sha256((system + user).encode()).digest())
    if "Describe the scene" in system:
        return description(context)
    if "conversation" in system:
        return dialogue(conversation(context, draw))
    return dialogue([reasoning(context, draw)])


def spoiled(text, draw):
    """(text, finish reason) as teachers spoil an answer now and then."""
    kind = draw.choice(("length", "leak", "refusal", "roles", "empty", "numbers"))
    if kind == "length":
        return text[: len(text) * 2 // 3], "length"
    if kind == "leak":
        return re.sub(r"(Answer:\n|^(?!Question))", r"\1As the captions say: ", text, count=1), "stop"
    if kind == "roles":
        return "Answer:\nYes.\n===\n" + text, "stop"
    if kind == "numbers":
        return text + " It is at [0.125, 0.25, 0.5, 0.75].", "stop"
    return ("I'm sorry, but I cannot see any picture." if kind == "refusal" else ""), "stop"


class Teacher(http.server.ThreadingHTTPServer):
    """Counts by prompt; a fault is drawn from prompt and attempt, so a repetition may do better."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port=0, delay=0.0, bad=0.0, faults=0.0, rest_after=None):
        super().__init__(("127.0.0.1", port), Handler)
        self.delay, self.bad, self.faults = delay, bad, faults
        self.rest_after = rest_after  # so many answers, until `rested` is set
        self.rested = threading.Event()
        self.lock = threading.Lock()
        self.attempts = collections.Counter()  # by prompt
        self.answered = collections.Counter()  # by prompt
        self.statuses = collections.Counter()

    def handle_error(self, request, client_address):
        """A client that was killed is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def stats(self):
        with self.lock:
            return {"attempts": sum(self.attempts.values()), "prompts": len(self.attempts),
                    "answered": len(self.answered), "answers": sum(self.answered.values()),
                    "answered_again": sum(n - 1 for n in self.answered.values()),
                    "statuses": dict(self.statuses)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.count(status)

    def count(self, status):
        with self.server.lock:
            self.server.statuses[str(status)] += 1

    def do_GET(self):
        if self.path == "/stats":
            self.reply(200, self.server.stats())
        else:
            self.reply(404, {"error": {"message": "there is /stats"}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self.reply(404, {"error": {"message": "there is /v1/chat/completions"}})
            return
        prompt = hashlib.sha256(body).hexdigest()
        with self.server.lock:
            self.server.attempts[prompt] += 1
            draw = random.Random(f"{prompt} {self.server.attempts[prompt]}")
        time.sleep(self.server.delay)
        if draw.random() < self.server.faults:
            fault = draw.choice(FAULTS)
            if fault == "broken":
                self.close_connection = True
                self.count("broken")
            elif fault == "error":
                self.reply(500, {"error": {"message": "the server had an error"}})
            else:
                headers = [("Retry-After", "1")] if fault == "retry" else []
                self.reply(429, {"error": {"message": "slow down"}}, headers)
            return
        messages = json.loads(body)["messages"]
        if messages[0]["role"] != "system":
            self.reply(400, {"error": {"message": "this teacher knows the prompts of llava-datagen instruct alone"}})
            return
        text, reason = answer_to(messages[0]["content"], messages[-1]["content"]), "stop"
        draw = random.Random(prompt)
        if draw.random() < self.server.bad:
            text, reason = spoiled(text, draw)
        with self.server.lock:
            rest = self.server.rest_after is not None and len(self.server.answered) >= self.server.rest_after
        if rest:
            self.server.rested.wait()
        with self.server.lock:
            self.server.answered[prompt] += 1
        words = sum(len(message["content"].split()) for message in messages)
        self.reply(200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}],
                         "usage": {"prompt_tokens": words * 4 // 3, "completion_tokens": len(text.split()) * 4 // 3}})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bad", type=float, default=0.05, help="share of answers that are no good")
    parser.add_argument("--faults", type=float, default=0.05, help="share of attempts that fail")
    options = parser.parse_args()
    with Teacher(options.port, options.delay, options.bad, options.faults) as teacher:
        print(teacher.base_url, flush=True)
        try:
            teacher.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
