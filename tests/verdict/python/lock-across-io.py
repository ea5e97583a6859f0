"""A thread for each request; each holds one lock while it asks another program."""
import http.server
import os
import threading
import time
import urllib.request

stock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Peer(Handler):
    def do_GET(self):
        time.sleep(0.04)
        self.answer(b"in stock")


class Shop(Handler):
    def do_GET(self):
        self.answer(reserve())


def reserve():
    with stock:
        return urllib.request.urlopen(f"http://127.0.0.1:{peer.server_address[1]}/").read()


peer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Peer)
if os.fork() == 0:
    peer.serve_forever()
peer.socket.close()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
print(f"ready port={server.server_address[1]} peer={peer.server_address[1]}", flush=True)
server.serve_forever()
