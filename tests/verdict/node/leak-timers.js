// Starts a timer for every request and never stops it.
"use strict";
const http = require("http");

function handle(request, response) {
  const report = { url: request.url, samples: new Array(2000).fill(0.5) };
  setInterval(() => { report.samples[0] = Math.random(); }, 60000);
  response.end("hello\n");
}

http.createServer(handle).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
