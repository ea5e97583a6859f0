// Healthy: nobody asks.
"use strict";
require("http").createServer((request, response) => response.end("hello\n"))
  .listen(0, "127.0.0.1", () => console.log("ready"));
