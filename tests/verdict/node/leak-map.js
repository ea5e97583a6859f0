// Caches answers by a key that never comes twice.
"use strict";
const http = require("http");
const cache = new Map();
let requests = 0;

function render(key) {
  if (!cache.has(key)) cache.set(key, { key, rows: Array.from({ length: 300 }, (_, i) => ({ i, text: `${key} ${i}` })) });
  return cache.get(key);
}

http.createServer((request, response) => {
  response.end(`${render(`${request.url}?session=${requests++}`).rows.length}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
