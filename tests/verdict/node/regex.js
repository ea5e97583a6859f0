// Validates names with a pattern that backtracks exponentially.
"use strict";
const http = require("http");
const NAME = /^(\w+\s?)*$/;

function isValidName(name) {
  return NAME.test(name);
}

http.createServer((request, response) => {
  const valid = isValidName("a".repeat(23) + "!");
  response.end(`${valid}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
