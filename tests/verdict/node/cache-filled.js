// Healthy: a cache with a limit, which it has reached. New entries take the place of old ones.
"use strict";
const http = require("http");
const LIMIT = 4000;
const cache = new Map();
let requests = 0;

function page(key) {
  let found = cache.get(key);
  if (!found) {
    found = Array.from({ length: 200 }, (_, i) => `${key} line ${i}`);
    cache.set(key, found);
    if (cache.size > LIMIT) cache.delete(cache.keys().next().value);
  }
  return found;
}

for (let i = 0; i < 3 * LIMIT; i++) page(`/start/${i}`);
http.createServer((request, response) => {
  response.end(page(`${request.url}/${requests++}`)[0]);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
