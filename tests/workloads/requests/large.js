// Answers with a large JSON text, made anew for each request. Prints its port, and ends after so many requests.
const http = require("http");
let left = Number(process.argv[2]);
const rows = Array.from({ length: 100000 }, (_, id) => ({ id, name: `customer ${id}`, note: "x".repeat(40) }));

function report() {
  let text = "";
  // Four times, so that it is large.
  for (let i = 0; i < 4; i++) text += JSON.stringify(rows);
  return text;
}

const server = http.createServer((request, response) => {
  const body = request.url === "/report" ? report() : "ok";
  response.setHeader("Content-Length", Buffer.byteLength(body));
  response.setHeader("Connection", "close");
  response.end(body, () => { if (--left === 0) setTimeout(() => process.exit(0), 100); });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
