// Compiles its patterns anew for every request.
package main

import (
	"fmt"
	"net"
	"net/http"
	"regexp"
)

func route(path string) bool {
	for i := 0; i < 200; i++ {
		pattern := regexp.MustCompile(fmt.Sprintf(`^/(users|orders|items)/%d/([a-z]+)-(\d{1,8})/?$`, i))
		if pattern.MatchString(path) {
			return true
		}
	}
	return false
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("ready port=%d\n", listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, route(r.URL.Path))
	}))
}
