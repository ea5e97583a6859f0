// Keeps the body of every upload: memory outside V8's heap.
"use strict";
const http = require("http");
const uploads = [];

function keep(bytes) {
  uploads.push(Buffer.alloc(bytes, 1));
  return uploads.length;
}

http.createServer((request, response) => {
  response.end(`${keep(20000)}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
