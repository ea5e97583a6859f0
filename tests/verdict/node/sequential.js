// Asks three services one after the other that could be asked at once.
"use strict";
const { fork } = require("child_process"), http = require("http"), path = require("path");
const agent = new http.Agent({ keepAlive: true });

const ask = (port) => new Promise((resolve, reject) => {
  http.get({ port, agent, host: "127.0.0.1" }, (response) => response.resume().on("end", resolve)).on("error", reject);
});

async function buildPage(ports) {
  for (const port of ports) await ask(port);
  return "page\n";
}

const service = () => new Promise((resolve) => {
  fork(path.join(__dirname, "slow-service.js"), ["80"]).on("message", resolve);
});
Promise.all([service(), service(), service()]).then((ports) => {
  http.createServer(async (request, response) => {
    response.end(await buildPage(ports));
  }).listen(0, "127.0.0.1", function () { console.log(`ready port=${this.address().port}`); });
});
