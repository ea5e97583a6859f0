// A peer that answers after so many milliseconds. slow-service.js MS
"use strict";
const http = require("http");
http.createServer((request, response) => {
  setTimeout(() => response.end("answer\n"), Number(process.argv[2]));
}).listen(0, "127.0.0.1", function () { process.send?.(this.address().port); });
