// Answers after a while that it chooses, and logs how long each answer took by its own clock. `/quit` prints the log. With a key
// and a certificate it is encrypted.
const [key, cert] = process.argv.slice(2).map((path) => require('fs').readFileSync(path));
const create = key ? (answer) => require('https').createServer({ key, cert }, answer) : require('http').createServer;
const log = [];
let seed = 7;
const random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;
const server = create((request, response) => {
  const began = process.hrtime.bigint();
  if (request.url === '/quit') {
    response.end('bye');
    process.stdout.write(JSON.stringify(log) + '\n', () => process.exit(0));
    return;
  }
  setTimeout(() => {
    response.statusCode = request.url.startsWith('/fail') ? 503 : 200;
    const body = 'x'.repeat(100 + 5000 * random());
    // Before it is sent: whoever waits for it may get the CPU at once.
    log.push([request.url, Number(process.hrtime.bigint() - began)]);
    response.end(body);
  }, 2 + 20 * random());
});
server.keepAliveTimeout = 60000;
server.listen(0, '127.0.0.1', 2048, () => console.log(server.address().port));
