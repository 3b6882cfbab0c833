// The script of the chat page on a page that is only pretended. Usage: chat_page_test.mjs PAGE
import assert from "node:assert";
import {readFileSync} from "node:fs";
import vm from "node:vm";

const script = readFileSync(process.argv[2], "utf8").match(/<script>([\s\S]*)<\/script>/)[1];

// What the script uses of an element.
class Element {
  value = ""; textContent = ""; hidden = false; className = ""; children = [];
  scrollTop = 0; scrollHeight = 0; clientHeight = 0;
  classList = {add() {}, remove() {}};
  append(...nodes) { for (const node of nodes) { node.parentNode = this; this.children.push(node); } }
  replaceChildren(...nodes) { this.children = []; this.append(...nodes); }
  remove() { const all = this.parentNode.children; all.splice(all.indexOf(this), 1); }
  focus() {}
  click() {}
}

const event = json => `data: ${JSON.stringify(json)}\n\n`;
const piece = text => event({choices: [{delta: {content: text}}]});

// A page whose gateway answers as the test says: `asked` are the bodies of its questions, `answers`
// what writes the stream of each.
function openPage() {
  const elements = {}, asked = [], answers = [];
  const fetch = async (path, options) => {
    if (path === "/v1/models") return {ok: true, json: async () => ({data: [{id: "emoji"}]})};
    asked.push(JSON.parse(options.body));
    const stream = new TransformStream();
    const writer = stream.writable.getWriter();
    options.signal.addEventListener("abort", () => writer.abort(options.signal.reason).catch(() => {}));
    answers.push({
      send: text => writer.write(new TextEncoder().encode(text)),
      end: () => writer.close(),
    });
    return {ok: true, body: stream.readable};
  };
  const document = {
    getElementById: id => elements[id] ??= new Element(),
    createElement: () => new Element(),
    createTextNode: data => ({data}),
    querySelectorAll: () => [],
  };
  class Option extends Element {}
  class Image extends Element {}
  vm.runInNewContext(script, {document, fetch, Option, Image, AbortController, TextDecoderStream, JSON});
  const $ = document.getElementById;
  return {
    $, asked, answers,
    ask(question) { $("text").value = question; $("send").onclick(); },
    shown: () => $("log").children.map(turn => turn.children.at(-1).data),
  };
}

async function eventually(condition, what) {
  for (let i = 0; i < 10000; ++i) {
    if (condition()) return;
    await new Promise(resolve => setTimeout(resolve, 1));
  }
  assert.fail(what);
}

const texts = body => body.messages.map(message => message.content.at(-1).text ?? message.content);

{  // Questions carry what was said before.
  const page = openPage();
  page.ask("first");
  await eventually(() => page.answers.length === 1, "no question");
  page.answers[0].send(piece("one"));
  page.answers[0].send("data: [DONE]\n\n");
  page.answers[0].end();
  await eventually(() => page.$("send").textContent === "Send", "no end");
  assert.deepEqual(page.shown(), ["first", "one"]);
  page.ask("second");
  await eventually(() => page.asked.length === 2, "no question");
  assert.deepEqual(texts(page.asked[1]), ["first", "one", "second"]);
}

{  // A new chat during an answer knows nothing of the old one.
  const page = openPage();
  page.ask("secret");
  await eventually(() => page.answers.length === 1, "no question");
  page.answers[0].send(piece("half an ans"));
  await eventually(() => page.shown().at(-1) === "half an ans", "no text");
  page.$("new").onclick();
  await eventually(() => page.$("send").textContent === "Send", "no end");
  assert.deepEqual(page.shown(), []);
  page.ask("other");
  await eventually(() => page.asked.length === 2, "no question");
  assert.deepEqual(texts(page.asked[1]), ["other"]);
}

{  // Nor does it get the question back that had no answer yet.
  const page = openPage();
  page.ask("secret");
  await eventually(() => page.answers.length === 1, "no question");
  page.$("new").onclick();
  await eventually(() => page.$("send").textContent === "Send", "no end");
  assert.deepEqual(page.shown(), []);
  assert.equal(page.$("text").value, "");
}

{  // A stopped answer stays, and so does what was asked.
  const page = openPage();
  page.ask("long");
  await eventually(() => page.answers.length === 1, "no question");
  page.answers[0].send(piece("so far"));
  await eventually(() => page.shown().at(-1) === "so far", "no text");
  page.$("send").onclick();
  await eventually(() => page.$("send").textContent === "Send", "no end");
  assert.deepEqual(page.shown(), ["long", "so far", "Stopped."]);
  page.ask("go on");
  await eventually(() => page.asked.length === 2, "no question");
  assert.deepEqual(texts(page.asked[1]), ["long", "so far", "go on"]);
}
