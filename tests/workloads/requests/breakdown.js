// As breakdown.py, in an event loop.
const http = require('http');
const net = require('net');
const [first, second] = process.argv.slice(2, 4).map((port) => net.connect(Number(port), '127.0.0.1'));
const ask = (peer, question) => new Promise((answered) => {
  peer.once('data', answered);
  peer.write(question);
});
const compute = (ms) => {
  const began = process.cpuUsage();
  for (;;) {
    const { user, system } = process.cpuUsage(began);
    if (user + system >= 1000 * ms) return;
  }
};
function alpha() {
  compute(20);
}
function beta() {
  compute(10);
}
const server = http.createServer(async (request, response) => {
  if (request.url === '/quit') process.exit(0);
  if (request.url === '/alpha') {
    alpha();
  } else if (request.url === '/beta') {
    await ask(first, 'question\n');
    beta();
  } else {
    await ask(first, 'first\n');
    await ask(first, 'second\n');
    await ask(second, 'third\n');
    compute(20);
  }
  response.end('ok');
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
