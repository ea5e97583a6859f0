// The primary has nothing to do; its two workers burn the CPUs.
"use strict";
const cluster = require("cluster"), http = require("http");

function rank() {
  let sum = 0;
  for (let i = 0; i < 3e6; i++) sum = (sum * 31 + i) | 0;
  return sum;
}

if (cluster.isPrimary) {
  cluster.fork();
  cluster.fork();
  let ready = 0;
  cluster.on("listening", () => { if (++ready === 2) console.log("ready"); });
} else {
  http.createServer((request, response) => response.end(`${rank()}\n`)).listen(0, "127.0.0.1");
  setInterval(rank, 0);
}
