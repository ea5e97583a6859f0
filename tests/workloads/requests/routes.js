// As routes.py, in an event loop.
const http = require('http');
const net = require('net');
const peer = net.connect(Number(process.argv[2]), '127.0.0.1');
const ask = () => new Promise((answered) => {
  peer.once('data', answered);
  peer.write('question\n');
});
function alpha() {
  const began = process.cpuUsage();
  for (;;) {
    const { user, system } = process.cpuUsage(began);
    if (user + system >= 20000) return;
  }
}
function beta() {
  const began = process.cpuUsage();
  for (;;) {
    const { user, system } = process.cpuUsage(began);
    if (user + system >= 10000) return;
  }
}
const server = http.createServer(async (request, response) => {
  if (request.url === '/quit') process.exit(0);
  if (request.url === '/alpha') {
    alpha();
  } else {
    await ask();
    beta();
  }
  response.end('ok');
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
