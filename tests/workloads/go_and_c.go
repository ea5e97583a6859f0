// A Go program that calls C, which calls Go.
package main

/*
extern int goBack(int);
static int __attribute__((noinline)) workInC(int n) {
	volatile int x = n;
	for (int i = 0; i < 20000; i++) x = x * 31 + i;
	return x;
}
static int __attribute__((noinline)) fromC(int n) { return goBack(n) + 1; }
*/
import "C"
import "fmt"

var sink int

//go:noinline
func leaf(n int) int {
	x := n
	for i := 0; i < 20000; i++ {
		x = x*31 + i
	}
	return x
}

//export goBack
func goBack(n C.int) C.int { return C.int(leaf(int(n))) }

//go:noinline
func intoC(n int) int { return int(C.workInC(C.int(n))) }

//go:noinline
func throughC(n int) int { return int(C.fromC(C.int(n))) }

//go:noinline
func alone(n int) int { return leaf(n) + 1 }

func main() {
	fmt.Println("ready")
	for n := 0; ; n++ {
		sink += intoC(n) + throughC(n) + alone(n)
	}
}
