// Starts more threads that compute than the machine has CPUs; the server is one among them.
"use strict";
const { Worker } = require("worker_threads"), http = require("http"), os = require("os");

const COMPUTE = `
function simulate(x) { for (let i = 0; i < 1e7; i++) x = (x * 1103515245 + 12345) & 0x7fffffff; return x; }
for (let x = 1;;) x = simulate(x);`;
for (let i = 0; i < 4 * os.cpus().length; i++) new Worker(COMPUTE, { eval: true });

http.createServer((request, response) => {
  response.end("hello\n");
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
