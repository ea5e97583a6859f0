"""A thread for each connection. Logs how long each answer took by its own clock; `/quit` prints the log. With a key and a
certificate it is encrypted."""
import json, os, random, ssl, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log = []

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        began = time.perf_counter_ns()
        if self.path == "/quit":
            print(json.dumps(log), flush=True)
            os._exit(0)
        time.sleep(0.002 + 0.02 * random.random())
        self.send_response(503 if self.path.startswith("/fail") else 200)
        body = b"x" * random.randrange(100, 5000)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        # Before it is sent: whoever waits for it may get the CPU at once.
        log.append([self.path, time.perf_counter_ns() - began])
        self.wfile.flush()

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 2048
    daemon_threads = True

random.seed(7)
server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[1])
    # The handshake is the thread's that reads.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
