"""An asyncio server that makes one large JSON text for each request, on the loop."""
import asyncio
import json

ROWS = [{"id": i, "name": f"customer {i}", "tags": [i, i + 1]} for i in range(120_000)]


def export_rows():
    return json.dumps(ROWS, indent=1)


async def handle(reader, writer):
    while await reader.readuntil(b"\r\n\r\n"):
        text = str(len(export_rows())).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()


async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"ready port={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


asyncio.run(main())
