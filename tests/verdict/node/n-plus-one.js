// One query for each row, over a connection that is kept: 150 round trips where one would do.
"use strict";
const { spawn } = require("child_process"), http = require("http"), net = require("net"), path = require("path");
const socket = path.join(process.argv[2], "redis.sock");
spawn("redis-server", ["--port", "0", "--save", "", "--unixsocket", socket], { stdio: "ignore" });

function connect() {
  const client = net.connect(socket);
  client.on("error", () => setTimeout(connect, 50)).on("connect", () => serve(client));
}

function serve(client) {
  const waiting = [];
  client.on("data", (data) => {
    for (let i = data.toString("latin1").split("\r\n").length - 1; i > 0; i--) waiting.shift()?.();
  });
  const price = (id) => new Promise((resolve) => {
    waiting.push(resolve);
    client.write(`INCR price:${id}\r\n`);
  });

  async function listOrders() {
    for (let id = 0; id < 150; id++) await price(id);
    return "150\n";
  }
  http.createServer(async (request, response) => {
    response.end(await listOrders());
  }).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
}
connect();
