// A TLS library by the names of its functions, without a cipher: a record is what it holds, turned over, and 16 bytes. It answers as
// many requests as the first line of its input says on each of two connections at port 8443: on the first one the library calls
// the socket itself, on the second one it is given memory.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEADER = 5, ADDED = 16, MOST = 1024 };

typedef struct {
    int fd, in_memory;
    unsigned char in[MOST], out[MOST];
    size_t out_len;
} SSL;

static void must(int is) {
    if (!is) _exit(1);
}

static void turn(unsigned char *to, const unsigned char *from, size_t len) {
    for (size_t i = 0; i < len; i++) to[i] = ~from[i];
}

static size_t record(unsigned char *to, const void *from, size_t len) {
    size_t body = len + ADDED;
    memcpy(to, (unsigned char[]){23, 3, 3, body >> 8, body & 255}, HEADER);
    turn(to + HEADER, from, len);
    memset(to + HEADER + len, 0, ADDED);
    return HEADER + body;
}

__attribute__((noinline)) int SSL_read(SSL *ssl, void *buffer, int size) {
    if (!ssl->in_memory) {
        must(recv(ssl->fd, ssl->in, HEADER, MSG_WAITALL) == HEADER);
        size_t body = ssl->in[3] << 8 | ssl->in[4];
        must(recv(ssl->fd, ssl->in + HEADER, body, MSG_WAITALL) == (ssize_t)body);
    }
    int len = (ssl->in[3] << 8 | ssl->in[4]) - ADDED;
    must(len <= size);
    turn(buffer, ssl->in + HEADER, len);
    return len;
}

__attribute__((noinline)) int SSL_write(SSL *ssl, const void *buffer, int len) {
    ssl->out_len = record(ssl->out, buffer, len);
    if (!ssl->in_memory) must(send(ssl->fd, ssl->out, ssl->out_len, 0) > 0);
    return len;
}

__attribute__((noinline)) void SSL_free(SSL *ssl) {
    close(ssl->fd);
    free(ssl);
}

static void ask(struct sockaddr_in *address, int requests) {
    int fds[2];
    for (int c = 0; c < 2; c++) {
        fds[c] = socket(AF_INET, SOCK_STREAM, 0);
        must(connect(fds[c], (struct sockaddr *)address, sizeof *address) == 0);
    }
    for (int i = 0; i < requests; i++) {
        for (int c = 0; c < 2; c++) {
            char text[64];
            unsigned char bytes[MOST];
            size_t len = record(bytes, text, snprintf(text, sizeof text, "GET /%s HTTP/1.1\r\n\r\n", c ? "memory" : "socket"));
            must(send(fds[c], bytes, len, 0) == (ssize_t)len && recv(fds[c], bytes, MOST, 0) > 0);
        }
    }
    _exit(0);
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, requests = 0, status = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8443), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 2) == 0);
    must(scanf("%d", &requests) == 1);
    if (fork() == 0) ask(&address, requests);
    SSL *ssl[2];
    for (int c = 0; c < 2; c++) {
        ssl[c] = calloc(1, sizeof *ssl[c]);
        ssl[c]->fd = accept(listener, NULL, NULL);
        ssl[c]->in_memory = c;
    }
    for (int i = 0; i < requests; i++) {
        for (int c = 0; c < 2; c++) {
            char text[MOST];
            if (c) must(recv(ssl[c]->fd, ssl[c]->in, MOST, 0) > 0);
            must(SSL_read(ssl[c], text, sizeof text) > 0);
            const char *answer = i % 10 ? "HTTP/1.1 200 OK\r\n\r\n" : "HTTP/1.1 503 Busy\r\n\r\n";
            SSL_write(ssl[c], answer, strlen(answer));
            if (c) must(send(ssl[c]->fd, ssl[c]->out, ssl[c]->out_len, 0) > 0);
        }
    }
    wait(&status);
    for (int c = 0; c < 2; c++) SSL_free(ssl[c]);
    return status;
}
