// Much garbage beside a large heap of pointers: the collector takes much of the CPU time.
package main

import (
	"fmt"
	"net"
	"net/http"
)

type node struct {
	left, right *node
	value       [4]int
}

func tree(depth int) *node {
	if depth == 0 {
		return nil
	}
	return &node{left: tree(depth - 1), right: tree(depth - 1)}
}

var index = tree(20)
var sink *node

func search() int {
	sink = tree(15)
	return len(sink.value)
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("ready port=%d\n", listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, search())
	}))
}
