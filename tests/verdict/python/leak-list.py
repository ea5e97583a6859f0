"""Remembers every request it has ever seen."""
import http.server

SEEN = []


def remember(path):
    SEEN.append({"path": path, "parts": [path + str(i) for i in range(60)]})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        remember(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"ready port={server.server_address[1]}", flush=True)
server.serve_forever()
