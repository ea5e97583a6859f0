// Reads its whole catalogue again, synchronously, for every request.
"use strict";
const fs = require("fs"), http = require("http"), path = require("path");
const catalogue = path.join(process.argv[2], "catalogue");
fs.writeFileSync(catalogue, Buffer.alloc(96 << 20, "item\n"));

function loadCatalogue() {
  return fs.readFileSync(catalogue);
}

http.createServer((request, response) => {
  response.end(`${loadCatalogue().length}\n`);
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
