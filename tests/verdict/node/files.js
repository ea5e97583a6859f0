// Healthy: serves files of some kilobytes asynchronously.
"use strict";
const fs = require("fs"), http = require("http");
http.createServer((request, response) => {
  fs.readFile(__filename, (error, text) => response.end(text));
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
