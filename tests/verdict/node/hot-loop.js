// Compares every order with every other one, for every request.
"use strict";
const http = require("http");
const orders = Array.from({ length: 9000 }, (_, i) => ({ id: i, customer: (i * 7919) % 5003 }));

function findDuplicates() {
  let duplicates = 0;
  for (const a of orders) for (const b of orders) if (a.customer === b.customer && a.id < b.id) duplicates++;
  return duplicates;
}

http.createServer((request, response) => {
  response.end(`${findDuplicates()}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
