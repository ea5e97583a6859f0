// A server of HTTP/2 without encryption, and a client of it in a process of its own that asks over one connection, several at once.
// `serve` prints its port, and then, when it is told to end, how long each answer took by its own clock; `ask PORT` asks, `ask PORT wait` once
// before it waits for a line on its standard input.
const http2 = require("http2");
const [, , how, port, wait] = process.argv;

function serve() {
  const log = [];
  const server = http2.createServer();
  server.on("stream", (stream, headers) => {
    const began = process.hrtime.bigint();
    const path = headers[":path"];
    if (path === "/quit") {
      stream.respond({ ":status": 200 }, { endStream: true });
      return setTimeout(() => { console.log(JSON.stringify(log)); process.exit(0); }, 50);
    }
    setTimeout(() => {
      log.push([path, Number(process.hrtime.bigint() - began)]);
      stream.respond({ ":status": path.startsWith("/fail") ? 503 : 200 });
      stream.end("x".repeat(500));
    }, path.startsWith("/slow") ? 60 : 5 + Math.random() * 10);
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

async function ask() {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  const get = (path) => new Promise((resolve, reject) => {
    const stream = session.request({ ":path": path });
    stream.on("error", reject).on("end", resolve).resume();
    stream.end();
  });
  if (wait) {
    await get("/before");
    console.log("ready");
    await new Promise((resolve) => process.stdin.once("data", resolve));
  }
  for (let i = 0; i < 50; i++) {
    await Promise.all([get(`/users/${i}`), get("/slow"), get("/fail"), get(`/users/${i + 1}`)]);
  }
  await get("/quit");
  session.close();
  process.stdin.destroy();
}

if (how === "serve") serve(); else ask();
