// Adds a listener for every request and never removes it.
"use strict";
const { EventEmitter } = require("events"), http = require("http");
const config = new EventEmitter().setMaxListeners(0);

function handle(request, response) {
  const session = { url: request.url, history: new Array(2000).fill(request.url) };
  config.on("change", () => { session.history.length = 0; });
  response.end("hello\n");
}

http.createServer(handle).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
