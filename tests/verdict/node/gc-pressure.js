// Holds a large heap and makes much short-lived garbage: the collector marks the heap again and again.
"use strict";
const http = require("http");
const products = Array.from({ length: 400000 }, (_, i) => ({ id: i, tags: [i, `t${i}`], next: null }));

function search() {
  const ranked = [];
  for (let i = 0; i < 60000; i++) ranked.push({ product: products[(i * 13) % products.length], score: { value: i % 97 } });
  for (let i = 0; i < 4000; i++) products[(Math.random() * products.length) | 0] = { id: i, tags: new Array(50).fill(i), next: null };
  return ranked.filter((entry) => entry.score.value === 5).length;
}

http.createServer((request, response) => {
  response.end(`${search()}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
