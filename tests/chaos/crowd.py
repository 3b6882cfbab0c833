"""Many clients at once, under two API keys, while gateway and language service are killed."""
import threading
import time

import grpc

from clients import KEYS, PATIENCE, PICTURES, QUESTIONS, Chatter


class CrowdKiller:
    """Kills when so many bytes of all answers of a round have come, drawn before: the language service once, and the
    gateway. More would be blamed on answers that lived through them all."""

    def __init__(self, killer):
        self.killer, self.lock = killer, threading.Lock()

    def round(self, answers):
        self.told = 0
        draw, bytes_of_most = self.killer.draw, answers * self.killer.longest * 3 // 4
        self.plan = sorted(zip([draw.randrange(bytes_of_most) for _ in range(2)],
                               [("gateway",), draw.choice((("llm",), ("llm", "gateway")))]))

    def turn(self):
        before = 0

        def on_byte(count):
            nonlocal before
            with self.lock:
                self.told += max(0, count - before)
                before = max(before, count)
                if self.plan and self.told > self.plan[0][0] and not self.killer.is_reviving():
                    self.killer.kill(*self.plan.pop(0))

        return on_byte


class Prober:
    """On a thread of its own: what one key's client learns of the sessions of another, and how its own look meanwhile."""

    def __init__(self, chat, key, own, foreign, recorder):
        self.chat, self.key, self.own, self.foreign, self.recorder = chat, key, own, foreign, recorder
        self.over = threading.Event()
        self.passes = 0  # in which each call was answered
        self.failure = None
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        try:
            while not self.over.is_set() or self.passes == 0:
                self.look()
        except Exception as error:  # raised by end()
            self.failure = error

    def look(self):
        if all([self.probe(chatter) for chatter in self.foreign]):  # no shortcut: all are to be asked
            self.passes += 1
        for chatter in self.own:
            chatter.note_stored()
            for session in chatter.patiently(lambda: self.chat.ListSessions(
                    self.chat.new("ListSessionsRequest", page_size=1000), timeout=PATIENCE)).sessions:
                self.recorder.add(kind="listed", key=self.key, session=session.id)
        self.over.wait(0.1)

    def probe(self, chatter):
        new, session, turn = self.chat.new, chatter.session, chatter.turn or "unknown"
        mask = {"paths": ["title"]}
        calls = [("GetSession", {}), ("ListTurns", {}), ("Chat", {"text": "Who are you?"}), ("ResumeTurn", {"turn_id": turn}),
                 ("RegenerateTurn", {"turn_id": turn}), ("CancelTurn", {}), ("DeleteSession", {})]
        requests = [(name, new(f"{name}Request", session_id=session, **fields)) for name, fields in calls]
        requests.append(("UpdateSession", new("UpdateSessionRequest", session={"id": session, "title": "mine"}, update_mask=mask)))
        answered = True
        for name, request in requests:
            code = grpc.StatusCode.OK
            try:
                answer = getattr(self.chat, name)(request, timeout=PATIENCE)
                if name in ("Chat", "ResumeTurn", "RegenerateTurn"):
                    next(answer)
                    answer.cancel()
            except grpc.RpcError as error:
                code = error.code()
            if code == grpc.StatusCode.UNAVAILABLE:  # killed just now
                answered = False
                time.sleep(0.05)
                continue
            self.recorder.add(kind="probed", key=self.key, session=session, method=name, code=code.name)
        return answered

    def end(self):
        self.over.set()
        self.thread.join()
        if self.failure:
            raise self.failure


def together(steps):
    """What each step returns; all run at once."""
    results = [None] * len(steps)

    def run_step(place):
        try:
            results[place] = steps[place]()
        except BaseException as error:  # told by the caller's thread
            results[place] = error

    threads = [threading.Thread(target=run_step, args=(place,)) for place in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def run(chats, recorder, expected, killer, clients, problems):
    """Many clients at once. Two sessions, one of each key, are asked in by two clients; the others' texts are known."""
    crowd_killer = CrowdKiller(killer)
    chatters = [Chatter(chats[KEYS[n % 2]], f"crowd{n}", recorder, KEYS[n % 2]) for n in range(clients)]
    rivals = [Chatter(chatter.chat, f"rival{n}", recorder, chatter.key, chatter.session)
              for n, chatter in enumerate(chatters[:2])]
    probers = [Prober(chats[key], key, [c for c in rivals if c.key == key], [c for c in chatters if c.key != key], recorder)
               for key in KEYS]
    begin = time.monotonic()
    try:
        for number, text in enumerate(QUESTIONS):
            crowd_killer.round(len(chatters) + len(rivals))
            asking = [lambda n=n, c=c: c.ask(text, n // 2 % 2 + number, PICTURES[n // 2 % 2] if number == 0 else None,
                                             crowd_killer.turn()) for n, c in enumerate(chatters)]
            asking += [lambda c=c: c.ask(f"Again: {text}", number, None, crowd_killer.turn()) for c in rivals]
            answers = together(asking)
            for n in range(len(rivals), clients):
                if answers[n] != expected[n // 2 % 2][number]:
                    problems.append(f"{clients} at once, client {n}, turn {number + 1}: the answer differs, "
                                    f"kills so far {killer.kills}")
        killer.rest()
    finally:
        for prober in probers:
            prober.end()
    for chatter in chatters:
        chatter.note_stored()
    print(f"{len(killer.kills)} kills among {len(QUESTIONS) * (clients + len(rivals))} answers, {clients + len(rivals)} at a time, "
          f"{time.monotonic() - begin:.0f} s; {sum(e['kind'] == 'probed' for e in recorder.events)} probes of others' sessions")
    if not killer.kills:
        problems.append("nobody was killed among many answers")
