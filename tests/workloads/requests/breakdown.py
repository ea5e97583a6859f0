"""Each request asks a peer twice, another one once, and computes for 20 ms of CPU time; a thread for each connection.
But /alpha only computes, in alpha(), and /beta asks the first peer once and computes half as long, in beta(). The two ports to ask are
the arguments."""
import os, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ports = [int(port) for port in sys.argv[1:3]]
local = threading.local()

def ask(port, question):
    peers = local.__dict__.setdefault("peers", {})
    if port not in peers:
        peers[port] = socket.create_connection(("127.0.0.1", port))
    peers[port].sendall(question)
    return peers[port].recv(1000)

def compute(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

def alpha():
    compute(0.020)

def beta():
    compute(0.010)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        if self.path == "/quit":
            os._exit(0)
        if self.path == "/alpha":
            alpha()
        elif self.path == "/beta":
            ask(ports[0], b"question\n")
            beta()
        else:
            ask(ports[0], b"first\n")
            ask(ports[0], b"second\n")
            ask(ports[1], b"third\n")
            compute(0.020)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        self.wfile.flush()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
