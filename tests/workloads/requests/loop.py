"""An asyncio server. Logs how long each answer took by its own clock; `/quit` prints the log. With a key and a certificate it is
encrypted."""
import asyncio, json, os, random, ssl, sys, time

log = []

async def serve(reader, writer):
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        began = time.perf_counter_ns()
        path = head.split(b" ", 2)[1].decode()
        if path == "/quit":
            print(json.dumps(log), flush=True)
            os._exit(0)
        await asyncio.sleep(0.002 + 0.02 * random.random())
        body = b"x" * random.randrange(100, 5000)
        status = b"503 Busy" if path.startswith("/fail") else b"200 OK"
        # Before it is sent: whoever waits for it may get the CPU at once.
        log.append([path, time.perf_counter_ns() - began])
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()

async def main():
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2], sys.argv[1])
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2048, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

random.seed(7)
asyncio.run(main())
