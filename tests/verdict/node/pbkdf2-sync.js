// Checks passwords on the event loop.
"use strict";
const crypto = require("crypto"), http = require("http");

function checkPassword(password) {
  return crypto.pbkdf2Sync(password, "salt", 150000, 32, "sha256").toString("hex");
}

http.createServer((request, response) => {
  response.end(checkPassword(request.url));
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
