// Asks a command for something on every request, and waits for it on the event loop.
"use strict";
const { execSync } = require("child_process"), http = require("http");

function thumbnail() {
  return execSync("sleep 0.1; echo done");
}

http.createServer((request, response) => {
  response.end(thumbnail());
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
