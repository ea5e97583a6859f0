// Waits 300 ms for its one upstream in every request.
"use strict";
const { fork } = require("child_process"), http = require("http"), path = require("path");
const agent = new http.Agent({ keepAlive: true });

fork(path.join(__dirname, "slow-service.js"), ["300"]).on("message", (port) => {
  http.createServer((request, response) => {
    http.get({ port, agent, host: "127.0.0.1" }, (answer) => answer.pipe(response));
  }).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port} peer=${port}`); });
});
