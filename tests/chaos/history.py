"""What clients of a gateway saw, and whether it can be true.

A history is a list of events in the order in which they were seen, each a dictionary (a line of JSON in a
file). Fields of all: `kind`, `key` (the API key of who saw it), `session`; perhaps `client`, where several share
a key. Kinds:

    asked     request, text, picture        a question was sent; sent again, it has the same `request`
    started   stream, request, turn, number, version, seed, restarts
    text      stream, turn, offset, text    offset in bytes
    finished  stream, turn, version, text_bytes, reason
    failed    stream, turn, code            the turn ended without a whole answer, and the gateway said so
    broken    stream                        the stream broke; nothing is known of the turn
    stored    turns: [{turn, number, text, answer, version, seed, ended, reason}]   what ListTurns gave
    probed    method, code                  a call for a session of another key was answered so
    listed                                  ListSessions named the session

`stream` is unique for each call that streams. `version` is a number, or a list of name, number and digest
(hex). `picture`, `reason` and `restarts` may be missing. Where several clients ask in one session, nobody knows in which
order they were told: there only what is stored says that its turns are serial. `violations` lists every rule that is broken, `swap_violations`
those that must hold in addition when versions come and go and nothing else happens."""
import json

WHOLE = ("STOP", "LENGTH", "CONTEXT")  # reasons of answers that are not broken off


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
        self.outcome = None   # of its end
        self.restarts = 0     # processes that took it up


def violations(history):
    """Sentences that say what is wrong, in the order in which it shows."""
    found = []
    owners, turns, streams = {}, {}, {}
    requests = {}       # request -> (session, text)
    running = {}        # session -> turn
    last_number = {}    # session -> of the last turn that began
    final = {}          # session -> its stored turns, last seen
    settled = {}        # turn -> answer once it has ended
    askers = {}         # session -> clients
    for event in history:
        if event["kind"] == "asked":
            askers.setdefault(event["session"], set()).add(event.get("client", event["key"]))

    for place, event in enumerate(history):
        kind, session = event["kind"], event["session"]
        wrong = lambda text: found.append(f"event {place}: {text}")
        if kind == "probed":
            if event["code"] != "NOT_FOUND":
                wrong(f"{event['key']} got {event['code']} from {event['method']} for session {session} of another key")
            continue
        owner = owners.setdefault(session, event["key"])
        if owner != event["key"]:
            wrong(f"{event['key']} sees session {session} of {owner}")
        if kind == "asked":
            requests.setdefault(event["request"], (session, event["text"]))
            continue
        if kind == "listed":
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
            if event.get("restarts", turn.restarts) < turn.restarts:
                wrong(f"turn {event['turn']} was taken up {turn.restarts} times before, and now {event['restarts']}")
            turn.restarts = event.get("restarts", turn.restarts)
            identity = (session, event["number"], event["version"], event["seed"])
            if turn.identity is None:
                other, alone = running.get(session), len(askers.get(session, ())) < 2
                if alone and other and other != event["turn"]:
                    wrong(f"turn {event['turn']} begins while {other} of session {session} is running")
                if alone and event["number"] != last_number.get(session, 0) + 1:
                    wrong(f"turn {event['turn']} has number {event['number']} behind {last_number.get(session, 0)}")
                last_number[session] = event["number"]
                turn.identity, turn.request = identity, event.get("request")
                running[session] = event["turn"]
            elif turn.known == 0 and not turn.ended and _but_version(turn.identity) == _but_version(identity):
                turn.identity = identity  # the version went away before the first text: another one answers
            elif turn.identity != identity:
                wrong(f"turn {event['turn']} was {turn.identity} and is {identity}")
        elif kind == "text":
            if turn.identity is None:
                wrong(f"text of turn {event['turn']} before it began")
            _check_text(event, turn, stream, wrong)
        elif kind in ("finished", "failed"):
            stream["over"] = turn.ended = True
            outcome = (kind, event.get("code"), event.get("text_bytes"), event.get("reason"))
            if turn.outcome not in (None, outcome):
                wrong(f"turn {event['turn']} ended as {turn.outcome} and as {outcome}")
            turn.outcome = outcome
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


def _but_version(identity):
    session, number, _, seed = identity
    return session, number, seed


def swap_violations(history):
    """Nobody may notice that versions are swapped: no turn fails or is broken off, each one that was admitted
    ends, a number never stands for two contents, and the same version, asked the same with the same pictures
    and seed, says the same: it would not with features of another tower, or with two versions' tokens."""
    found = []
    started, ended, pictures, digests, final = {}, set(), {}, {}, {}
    for place, event in enumerate(history):
        kind = event["kind"]
        if kind == "asked":
            pictures[(event["session"], event["text"])] = event.get("picture")
        elif kind == "started":
            started[event["turn"]] = event
            name, version, digest = event["version"]
            if digests.setdefault((name, version), digest) != digest:
                found.append(f"event {place}: version {version} of {name} has the digests "
                             f"{digests[name, version][:12]} and {digest[:12]}")
        elif kind == "failed":
            found.append(f"event {place}: turn {event['turn']} failed: {event['code']}")
        elif kind == "broken":
            found.append(f"event {place}: stream {event['stream']} broke")
        elif kind == "finished":
            ended.add(event["turn"])
            if event["reason"] not in WHOLE:
                found.append(f"event {place}: turn {event['turn']} was broken off: {event['reason']}")
        elif kind == "stored":
            final[event["session"]] = event["turns"]
    found += [f"end: turn {turn} began and never ended" for turn in started if turn not in ended]
    said = {}
    for session, turns in final.items():
        before = []
        for turn in turns:
            picture = pictures.get((session, turn["text"]))
            question = (tuple(turn["version"]), turn["seed"], tuple(before), turn["text"], picture)
            answer, first = said.setdefault(question, (turn["answer"], turn["turn"]))
            if answer != turn["answer"]:
                found.append(f"end: turns {first} and {turn['turn']} differ, but version {turn['version'][1]} was "
                             f"asked the same: {answer[:60]!r}, {turn['answer'][:60]!r}")
            before.append((turn["text"], picture, turn["answer"]))
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
    for turn in stored[:-1]:
        if not turn["ended"]:
            wrong(f"turn {turn['turn']} is running and has turn {stored[-1]['turn']} behind it")
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
        if not kept["ended"]:
            found.append(f"end: turn {name} began and is still running")
        answer = kept["answer"].encode()
        if not answer.startswith(bytes(turn.bytes)):
            found.append(f"end: turn {name} told other text than is stored")
        if turn.ended and kept["ended"] and len(answer) != turn.known:
            found.append(f"end: turn {name} told {turn.known} bytes, {len(answer)} are stored")
        if turn.outcome and kept.get("reason"):
            told, reason = turn.outcome[0], turn.outcome[3]
            if kept["reason"] in WHOLE if told == "failed" else reason not in (None, kept["reason"]):
                found.append(f"end: turn {name} {told} with {reason or turn.outcome[1]} and is stored with {kept['reason']}")
    for request, (session, text) in requests.items():
        count = sum(turn["text"] == text for turn in final.get(session, ()))
        if count > 1:
            found.append(f"end: request {request} became {count} turns")
        if count == 0 and any(turn.request == request for turn in turns.values()):
            found.append(f"end: request {request} was acknowledged and is not stored")
