"""Asks an encrypted server over so many connections, so often each; then for `/quit`. Prints how many answers failed."""
import http.client, ssl, sys, threading

port, connections, requests = map(int, sys.argv[1:])
context = ssl._create_unverified_context()
barrier, failed = threading.Barrier(connections), []

def ask(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status

def run(c):
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    barrier.wait()
    for i in range(requests):
        path = f"/fail/{i}" if (c + i) % 10 == 0 else f"/users/{1000 + c}/orders?secret={i}"
        failed.append(ask(connection, path) >= 500)

threads = [threading.Thread(target=run, args=(c,)) for c in range(connections)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
try:
    ask(http.client.HTTPSConnection("127.0.0.1", port, context=context), "/quit")
except (http.client.HTTPException, OSError):
    pass  # some end without an answer
print(sum(failed))
