"""/alpha computes in alpha(); /beta asks a peer, whose port is the argument, and computes in beta(); a thread for each connection."""
import os, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

local = threading.local()

def ask():
    if not hasattr(local, "peer"):
        local.peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    local.peer.sendall(b"question\n")
    return local.peer.recv(1000)

def alpha():
    until = time.thread_time() + 0.020
    while time.thread_time() < until:
        pass

def beta():
    until = time.thread_time() + 0.010
    while time.thread_time() < until:
        pass

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        if self.path == "/quit":
            os._exit(0)
        if self.path == "/alpha":
            alpha()
        else:
            ask()
            beta()
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
