// Waits in each request, as its argument says: `lock` asks another program under one mutex, `sequence` asks it four times, `timer`
// sleeps.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

var stock sync.Mutex

func serve(answer func()) int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer()
		fmt.Fprint(w, "ok")
	}))
	return listener.Addr().(*net.TCPAddr).Port
}

func main() {
	if os.Args[1] == "peer" {
		fmt.Println(serve(func() { time.Sleep(40 * time.Millisecond) }))
		select {}
	}
	peer := exec.Command("/proc/self/exe", "peer")
	said, err := peer.StdoutPipe()
	if err != nil || peer.Start() != nil {
		panic(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		panic(err)
	}
	port := strings.TrimSpace(line)
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	ask := func() {
		answer, err := client.Get("http://127.0.0.1:" + port + "/")
		if err == nil {
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	}
	answer := map[string]func(){
		"lock":     func() { stock.Lock(); defer stock.Unlock(); ask() },
		"sequence": func() { ask(); ask(); ask(); ask() },
		"timer":    func() { time.Sleep(200 * time.Millisecond) },
	}[os.Args[1]]
	fmt.Printf("ready port=%d peer=%s\n", serve(answer), port)
	select {}
}
