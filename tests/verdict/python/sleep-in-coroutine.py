"""An asyncio server whose handler sleeps as threads do: the loop stands still meanwhile."""
import asyncio
import time


def ask_legacy_system():
    time.sleep(0.12)


async def handle(reader, writer):
    while await reader.readuntil(b"\r\n\r\n"):
        ask_legacy_system()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()


async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"ready port={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


asyncio.run(main())
