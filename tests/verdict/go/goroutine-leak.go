// Starts a goroutine for every request that waits for ever, with what it holds.
package main

import (
	"fmt"
	"net"
	"net/http"
)

func subscribe(size int) {
	buffer := make([]byte, size)
	for i := range buffer {
		buffer[i] = byte(i)
	}
	updates := make(chan int)
	go func() {
		buffer[0] = byte(<-updates)
	}()
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("ready port=%d\n", listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subscribe(16000)
		fmt.Fprint(w, "ok")
	}))
}
