// Every command of gomemcache.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

var count, bad int

func ok(name string, good bool, came interface{}) {
	count++
	if good {
		fmt.Printf("ok %d - %s\n", count, name)
		return
	}
	bad++
	fmt.Printf("not ok %d - %s: %v\n", count, name, came)
}

func fails(name string, err, wanted error) { ok(name, err == wanted, err) }

func gone(name string, mc *memcache.Client, key string) {
	var err error
	for try := 0; try < 40; try++ {
		if _, err = mc.Get(key); err == memcache.ErrCacheMiss {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	fails(name, err, memcache.ErrCacheMiss)
}

func item(key, value string) *memcache.Item {
	return &memcache.Item{Key: key, Value: []byte(value)}
}

func main() {
	mc := memcache.New(os.Args[1] + ":" + os.Args[2])
	mc.Timeout = 5 * time.Second

	_, err := mc.Get("absent")
	fails("Get absent", err, memcache.ErrCacheMiss)
	fails("Set", mc.Set(&memcache.Item{Key: "a", Value: []byte("text"), Flags: 4294967295, Expiration: 100}), nil)
	got, err := mc.Get("a")
	ok("Get", err == nil && string(got.Value) == "text" && got.Flags == 4294967295, err)
	raw := "\x00\r\n\xffEND\r\n"
	fails("Set bytes", mc.Set(item("b", raw)), nil)
	got, err = mc.Get("b")
	ok("Get bytes", err == nil && string(got.Value) == raw, got)
	fails("Set empty", mc.Set(item("e", "")), nil)
	got, err = mc.Get("e")
	ok("Get empty", err == nil && len(got.Value) == 0, err)
	fails("Add existing", mc.Add(item("a", "2")), memcache.ErrNotStored)
	fails("Add", mc.Add(item("c", "3")), nil)
	got, err = mc.Get("c")
	ok("Get what was added", err == nil && string(got.Value) == "3", err)
	got.Value = []byte("4")
	fails("CompareAndSwap", mc.CompareAndSwap(got), nil)
	fails("CompareAndSwap again", mc.CompareAndSwap(got), memcache.ErrCASConflict)
	fails("Delete", mc.Delete("c"), nil)
	fails("Delete absent", mc.Delete("c"), memcache.ErrCacheMiss)
	err = mc.CompareAndSwap(got)
	ok("CompareAndSwap absent", err == memcache.ErrNotStored || err == memcache.ErrCacheMiss, err)
	fails("Set a number", mc.Set(item("n", "1")), nil)
	number, err := mc.Increment("n", 41)
	ok("Increment", err == nil && number == 42, err)
	number, err = mc.Decrement("n", 2)
	ok("Decrement", err == nil && number == 40, err)
	number, err = mc.Decrement("n", 100)
	ok("Decrement below zero", err == nil && number == 0, err)
	_, err = mc.Increment("absent", 1)
	fails("Increment absent", err, memcache.ErrCacheMiss)
	_, err = mc.Increment("a", 1)
	ok("Increment a word", err != nil && strings.Contains(err.Error(), "non-numeric"), err)
	fails("Touch", mc.Touch("a", 200), nil)
	fails("Touch absent", mc.Touch("absent", 200), memcache.ErrCacheMiss)
	several, err := mc.GetMulti([]string{"a", "b", "absent"})
	ok("GetMulti", err == nil && len(several) == 2 && string(several["a"].Value) == "text", err)
	fails("longest key", mc.Set(item(strings.Repeat("k", 250), "v")), nil)
	fails("too long a key", mc.Set(item(strings.Repeat("k", 251), "v")), memcache.ErrMalformedKey)
	big := bytes.Repeat([]byte("x"), 900000)
	fails("large value", mc.Set(&memcache.Item{Key: "big", Value: big}), nil)
	got, err = mc.Get("big")
	ok("Get large value", err == nil && bytes.Equal(got.Value, big), err)
	err = mc.Set(&memcache.Item{Key: "big", Value: bytes.Repeat(big, 2)})
	ok("too large a value", err != nil, err)
	fails("Set with one second", mc.Set(&memcache.Item{Key: "short", Value: []byte("s"), Expiration: 1}), nil)
	gone("it expires", mc, "short")
	keys := make([]string, 300)
	done := make(chan error)
	for i := range keys {
		keys[i] = fmt.Sprintf("many%d", i)
		go func(key string) { done <- mc.Set(item(key, key)) }(keys[i])
	}
	var failed error
	for range keys {
		if err := <-done; err != nil {
			failed = err
		}
	}
	fails("300 at once", failed, nil)
	several, err = mc.GetMulti(keys)
	ok("GetMulti 300", err == nil && len(several) == 300, err)
	fails("FlushAll", mc.FlushAll(), nil)
	gone("it is flushed", mc, "many1")
	fails("DeleteAll", mc.DeleteAll(), nil)

	fmt.Printf("1..%d\n", count)
	if bad > 0 {
		os.Exit(1)
	}
}
