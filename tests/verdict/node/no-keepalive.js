// Opens a new connection to its upstream for every one of many small requests.
"use strict";
const { fork } = require("child_process"), http = require("http"), path = require("path");
const agent = new http.Agent({ keepAlive: false });

fork(path.join(__dirname, "slow-service.js"), ["0"]).on("message", (port) => {
  const ask = () => new Promise((resolve, reject) => {
    http.get({ port, agent, host: "127.0.0.1" }, (answer) => answer.resume().on("end", resolve)).on("error", reject);
  });
  http.createServer(async (request, response) => {
    await Promise.all(Array.from({ length: 10 }, ask));
    response.end("done\n");
  }).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port} peer=${port}`); });
});
