// Looks names up at a name server by the resolver of the runtime (c-ares), and asks a server at the address that it is told.
const dns = require("dns"), http = require("http");
const [, , server, port] = process.argv;
const resolver = new dns.promises.Resolver();
resolver.setServers([`${server}:53`]);

function ask(address) {
  return new Promise((resolve, reject) => {
    http.get({ host: address, port, path: "/", agent: false }, (answer) => answer.resume().on("end", resolve)).on("error", reject);
  });
}

process.stdin.once("data", async () => {
  const [address] = await resolver.resolve4("api.example.test");
  for (let i = 0; i < 5; i++) await ask(address);
  await resolver.resolve4("nowhere.example.test").catch(() => {});
  process.exit(0);
});
