"""A thread for each request; each sleeps before it answers."""
import http.server
import time


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wait_a_turn()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args):
        pass


def wait_a_turn():
    time.sleep(0.2)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"ready port={server.server_address[1]}", flush=True)
server.serve_forever()
