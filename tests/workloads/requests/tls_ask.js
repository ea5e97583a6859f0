// When somebody connects it asks an encrypted server 400 times over 8 connections that stay open, and prints how many answers failed.
const https = require('https');
const port = Number(process.argv[2]);
const agent = new https.Agent({ keepAlive: true, maxSockets: 8, rejectUnauthorized: false });
let next = 0, failed = 0, done = 0;
function ask() {
  const i = next++;
  if (i >= 400) return;
  const path = i % 10 === 0 ? `/fail/${i}` : `/users/${i}/orders`;
  https.get({ port, host: '127.0.0.1', agent, path }, (answer) => {
    if (answer.statusCode >= 500) failed++;
    answer.resume();
    answer.on('end', () => (++done === 400 ? process.stdout.write(`${failed}\n`, () => process.exit(0)) : setTimeout(ask, 4)));
  });
}
const server = require('net').createServer((socket) => {
  socket.on('error', () => {});
  for (let i = 0; i < 8; i++) ask();
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
