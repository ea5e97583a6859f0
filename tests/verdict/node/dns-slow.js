// Looks its upstream up anew for every request, with a resolver that is slow.
"use strict";
const dgram = require("dgram"), http = require("http"), { Worker, isMainThread } = require("worker_threads");

function resolver() {
  // Answers "no such name", late.
  const socket = dgram.createSocket("udp4");
  socket.on("message", (query, from) => {
    const answer = Buffer.from(query);
    answer[2] |= 0x80;
    answer[3] = (answer[3] & 0xf0) | 3;
    setTimeout(() => socket.send(answer, from.port, from.address), 1500);
  });
  socket.bind(53, "127.0.0.1");
}

if (!isMainThread) resolver();
else {
  new Worker(__filename);
  const ask = () => http.get("http://orders.internal/").on("error", () => {});
  setInterval(ask, 400);
  console.log("ready");
}
