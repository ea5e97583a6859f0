// Answers after a while that it chooses, and logs how long each answer took by its own clock. `/quit` prints the log. With a key
// and a certificate it is encrypted.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

func main() {
	var lock sync.Mutex
	log := [][2]any{}
	handler := func(answer http.ResponseWriter, request *http.Request) {
		began := time.Now()
		if request.URL.Path == "/quit" {
			fmt.Fprint(answer, "bye")
			answer.(http.Flusher).Flush()
			lock.Lock()
			json.NewEncoder(os.Stdout).Encode(log)
			os.Exit(0)
		}
		time.Sleep(time.Duration(2000+rand.Intn(20000)) * time.Microsecond)
		body := strings.Repeat("x", 100+rand.Intn(5000))
		answer.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if strings.HasPrefix(request.URL.Path, "/fail") {
			answer.WriteHeader(503)
		}
		fmt.Fprint(answer, body)
		// Before it is sent: whoever waits for it may get the CPU at once.
		lock.Lock()
		log = append(log, [2]any{request.URL.Path, time.Since(began).Nanoseconds()})
		lock.Unlock()
		answer.(http.Flusher).Flush()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	if len(os.Args) > 2 {
		panic(http.ServeTLS(listener, http.HandlerFunc(handler), os.Args[2], os.Args[1]))
	}
	panic(http.Serve(listener, http.HandlerFunc(handler)))
}
