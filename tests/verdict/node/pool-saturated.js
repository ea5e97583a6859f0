// Hashes passwords in libuv's pool: four threads, and far more jobs than they can do. Files wait behind them.
"use strict";
const crypto = require("crypto"), fs = require("fs"), http = require("http");

http.createServer((request, response) => {
  if (request.url === "/file") return fs.readFile(__filename, (error, text) => response.end(text));
  crypto.pbkdf2(request.url, "salt", 300000, 32, "sha256", (error, key) => response.end(key.toString("hex")));
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
