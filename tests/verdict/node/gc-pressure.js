// Each request makes many objects that live until a few requests later: the collector copies them again and again.
"use strict";
const http = require("http");
const recent = [];

function search() {
  const found = [];
  for (let i = 0; i < 60000; i++) found.push({ id: i, score: { value: i % 97 }, next: found[i - 1] });
  recent.push(found);
  if (recent.length > 6) recent.shift();
  return found.length;
}
http.createServer((request, response) => {
  response.end(`${search()}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
