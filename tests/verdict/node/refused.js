// Tries again and again to reach a service that is not there.
"use strict";
const http = require("http"), net = require("net");

function connectToQueue(port) {
  const socket = net.connect(port, "127.0.0.1");
  socket.on("error", () => setTimeout(() => connectToQueue(port), 2));
}

const closed = net.createServer().listen(0, "127.0.0.1", () => {
  const { port } = closed.address();
  closed.close(() => {
    for (let i = 0; i < 4; i++) connectToQueue(port);
    http.createServer((request, response) => response.end("hello\n"))
      .listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port} peer=${port}`); });
  });
});
