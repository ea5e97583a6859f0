// Healthy: small answers to few requests.
"use strict";
const http = require("http");
http.createServer((request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ url: request.url, items: Array.from({ length: 20 }, (_, i) => ({ i })) }));
}).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
