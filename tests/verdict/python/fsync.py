"""Makes every request durable by itself: one fsync each. fsync.py DIR"""
import http.server
import os
import sys

JOURNAL = os.open(os.path.join(sys.argv[1], "journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def append_to_journal(text):
    os.write(JOURNAL, text.encode())
    os.fsync(JOURNAL)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        for i in range(20):
            append_to_journal(f"{self.path} {i}\n")
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"ready port={server.server_address[1]}", flush=True)
server.serve_forever()
