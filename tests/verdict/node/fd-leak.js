// Opens its template for every request and forgets to close it.
"use strict";
const fs = require("fs"), http = require("http");

function render() {
  const file = fs.openSync(__filename);
  return fs.fstatSync(file).size;
}

http.createServer((request, response) => {
  response.end(`${render()}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
