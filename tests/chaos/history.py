"""What clients of a gateway saw, and whether it can be true.

A history is a list of events in the order in which they were seen, each a dictionary (a line of JSON in a
file). Fields of all: `kind`, `key` (who saw it), `session`. Kinds:

    asked     request, text                 a question was sent; sent again, it has the same `request`
    started   stream, request, turn, number, version, seed
    text      stream, turn, offset, text    offset in bytes
    finished  stream, turn, version, text_bytes
    failed    stream, turn, code            the turn ended without a whole answer, and the gateway said so
    broken    stream                        the stream broke; nothing is known of the turn
    stored    turns: [{turn, number, text, answer, version, seed, ended}]   what ListTurns gave

`stream` is unique for each call that streams. `violations` lists every rule that is broken."""
import json


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


class _Turn:
    """What was seen of one turn."""

    def __init__(self):
        self.identity = None  # (session, number, version, seed)
        self.request = None
        self.bytes = bytearray()
        self.known = 0        # bytes from the begin without a gap
        self.length = None
        self.ended = False


def violations(history):
    """Sentences that say what is wrong, in the order in which it shows."""
    found = []
    owners, turns, streams = {}, {}, {}
    requests = {}       # request -> (session, text)
    running = {}        # session -> turn
    last_number = {}    # session -> of the last turn that began
    final = {}          # session -> its stored turns, last seen
    settled = {}        # turn -> answer once it has ended

    for place, event in enumerate(history):
        kind, session = event["kind"], event["session"]
        wrong = lambda text: found.append(f"event {place}: {text}")
        owner = owners.setdefault(session, event["key"])
        if owner != event["key"]:
            wrong(f"{event['key']} sees session {session} of {owner}")
        if kind == "asked":
            requests.setdefault(event["request"], (session, event["text"]))
            continue
        if kind == "stored":
            final[session] = event["turns"]
            _check_stored(event["turns"], session, settled, wrong)
            continue

        stream = streams.setdefault(event["stream"], {"turn": None, "over": False, "next": None})
        if stream["over"]:
            wrong(f"{kind} on stream {event['stream']} after its end")
        if kind == "broken":
            stream["over"] = True
            continue
        turn = turns.setdefault(event["turn"], _Turn())
        if stream["turn"] not in (None, event["turn"]):
            wrong(f"stream {event['stream']} tells of turns {stream['turn']} and {event['turn']}")
        stream["turn"] = event["turn"]

        if kind == "started":
            identity = (session, event["number"], event["version"], event["seed"])
            if turn.identity is None:
                other = running.get(session)
                if other and other != event["turn"]:
                    wrong(f"turn {event['turn']} begins while {other} of session {session} is running")
                if event["number"] != last_number.get(session, 0) + 1:
                    wrong(f"turn {event['turn']} has number {event['number']} behind {last_number.get(session, 0)}")
                last_number[session] = event["number"]
                turn.identity, turn.request = identity, event.get("request")
                running[session] = event["turn"]
            elif turn.identity != identity:
                wrong(f"turn {event['turn']} was {turn.identity} and is {identity}")
        elif kind == "text":
            if turn.identity is None:
                wrong(f"text of turn {event['turn']} before it began")
            _check_text(event, turn, stream, wrong)
        elif kind in ("finished", "failed"):
            stream["over"] = turn.ended = True
            if running.get(session) == event["turn"]:
                del running[session]
            if kind == "finished":
                if turn.identity and event["version"] != turn.identity[2]:
                    wrong(f"turn {event['turn']} began with version {turn.identity[2]}, ends with {event['version']}")
                turn.length = event["text_bytes"]
                if turn.known != turn.length:
                    wrong(f"turn {event['turn']} has {turn.length} bytes, {turn.known} were told")

    _check_end(turns, requests, final, found)
    return found


def _check_text(event, turn, stream, wrong):
    """Bytes join within a stream, leave no gap between streams, and never change."""
    data, offset = event["text"].encode(), event["offset"]
    if stream["next"] is not None and offset != stream["next"]:
        wrong(f"stream {event['stream']} goes from byte {stream['next']} to {offset}")
    stream["next"] = offset + len(data)
    if offset > turn.known:
        wrong(f"bytes {turn.known} to {offset} of turn {event['turn']} are missing")
        return
    overlap = bytes(turn.bytes[offset:offset + len(data)])
    if not data.startswith(overlap):
        wrong(f"turn {event['turn']} tells other text from byte {offset} on than before")
    turn.bytes[offset:offset + len(data)] = data
    turn.known = max(turn.known, offset + len(data))


def _check_stored(stored, session, settled, wrong):
    numbers = [turn["number"] for turn in stored]
    if numbers != list(range(1, len(stored) + 1)):
        wrong(f"the turns of session {session} are numbered {numbers}")
    for turn in stored:
        answer = settled.setdefault(turn["turn"], turn["answer"]) if turn["ended"] else turn["answer"]
        if answer != turn["answer"]:
            wrong(f"the answer of turn {turn['turn']} changed after its end")


def _check_end(turns, requests, final, found):
    stored = {turn["turn"]: (session, turn) for session, each in final.items() for turn in each}
    for name, turn in turns.items():
        if turn.identity is None:
            continue
        if turn.identity[0] not in final:
            found.append(f"end: the turns of session {turn.identity[0]} were never looked at")
            continue
        if name not in stored:
            found.append(f"end: turn {name} was acknowledged and is lost")
            continue
        kept = stored[name][1]
        if (stored[name][0], kept["number"], kept["version"], kept["seed"]) != turn.identity:
            found.append(f"end: turn {name} was {turn.identity} and is stored as another")
        answer = kept["answer"].encode()
        if not answer.startswith(bytes(turn.bytes)):
            found.append(f"end: turn {name} told other text than is stored")
        if turn.ended and kept["ended"] and len(answer) != turn.known:
            found.append(f"end: turn {name} told {turn.known} bytes, {len(answer)} are stored")
    for request, (session, text) in requests.items():
        count = sum(turn["text"] == text for turn in final.get(session, ()))
        if count > 1:
            found.append(f"end: request {request} became {count} turns")
        if count == 0 and any(turn.request == request for turn in turns.values()):
            found.append(f"end: request {request} was acknowledged and is not stored")
