"""A client of a server whose answers fail. `at_once` asks again as soon as an answer has come, `backs_off` waits twice as long each time, and
`refused` connects again and again to where nobody listens. Waits for a line on its standard input first."""
import http.client, socket, sys, time

how, port = sys.argv[1], int(sys.argv[2])

def ask():
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/pay")
    status = connection.getresponse().status
    connection.close()
    return status

def connect():
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        time.sleep(0.002)

sys.stdin.readline()
if how == "refused":
    for _ in range(300):
        connect()
else:
    pause = 0.05
    for _ in range(300 if how == "at_once" else 6):
        assert ask() == 503
        if how == "backs_off":
            time.sleep(pause)
            pause *= 2
        else:
            time.sleep(0.001)
