"""A server with one thread that accepts and answers, and sleeps so many seconds for each connection. Prints its port, and ends after so
many connections."""
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

seconds, connections = float(sys.argv[1]), int(sys.argv[2])

def work():
    time.sleep(seconds)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        work()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
for _ in range(connections):
    server.handle_request()
