// A Go program whose callers are known: leaves without a frame, deep recursion, closures, deferred functions, methods of
// interfaces, and much of what its runtime does on other stacks (garbage, goroutines, channels, clocks).
package main

import (
	"fmt"
	"sync"
	"time"
)

var sink int
var table = map[int]int{}
var kept [][]byte

//go:noinline
func leaf(n int) int {
	x := n
	for i := 0; i < 20000; i++ {
		x = x*31 + i
	}
	return x
}

//go:noinline
func once(n int) int { return leaf(n) + 1 }

//go:noinline
func thrice(n int) int { return leaf(n) + leaf(n+1) + leaf(n+2) }

//go:noinline
func descend(n int) int {
	if n == 0 {
		return leaf(n)
	}
	return descend(n-1) + 1
}

//go:noinline
func late(n int) {
	defer func() { sink += leaf(n) }()
	sink++
}

type shape interface{ area(int) int }
type square struct{ k int }

//go:noinline
func (s square) area(n int) int {
	x := s.k
	for i := 0; i < 10000; i++ {
		x = x*33 + n
	}
	return x
}

//go:noinline
func measure(s shape, n int) int { return s.area(n) }

//go:noinline
func closureOf(k int) func(int) int {
	return func(n int) int {
		x := k
		for i := 0; i < 10000; i++ {
			x = x*33 + n
		}
		return x
	}
}

//go:noinline
func call(f func(int) int, n int) int { return f(n) }

//go:noinline
func garbage(n int) {
	for i := 0; i < 20; i++ {
		kept = append(kept, make([]byte, 1024))
		table[(n*i)&1023] += i
	}
	if len(kept) > 20000 {
		kept = nil
	}
}

//go:noinline
func goroutines(c chan int) {
	var done sync.WaitGroup
	for i := 0; i < 10; i++ {
		done.Add(1)
		go func() { sink++; done.Done() }()
		c <- i
		sink += <-c
	}
	done.Wait()
}

//go:noinline
func clocks() {
	for i := 0; i < 200; i++ {
		sink += int(time.Now().UnixNano() & 1)
	}
}

func main() {
	fmt.Println("ready")
	c, f := make(chan int, 1), closureOf(3)
	for n := 0; ; n++ {
		sink += once(n) + thrice(n) + descend(60) + measure(square{n}, n) + call(f, n)
		late(n)
		garbage(n)
		goroutines(c)
		clocks()
	}
}
