// A server stream and an upload over plain TCP; written from docs/protocol.md, "Streams".
// stream HOST:PORT COUNT takes COUNT numbers of Streams.count and sends them to Streams.total.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	magic        = 0x52504350
	request      = 0x01
	response     = 0x02
	ping         = 0x05
	pong         = 0x06
	item         = 0x08
	end          = 0x09
	credit       = 0x0a
	clientStream = 0x10
	serverStream = 0x20
	window       = 16384
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

type connection struct {
	net.Conn
	reader *bufio.Reader
}

func (c *connection) send(kind, flags byte, id uint64, header, body any) int {
	var parts [2][]byte
	for n, part := range []any{header, body} {
		if part != nil {
			var err error
			parts[n], err = json.Marshal(part)
			check(err)
		}
	}
	return c.sendRaw(kind, flags, id, parts[0], parts[1])
}

func (c *connection) sendRaw(kind, flags byte, id uint64, header, body []byte) int {
	frame := make([]byte, 16, 16+len(header)+len(body))
	frame[0], frame[1] = kind, flags
	binary.BigEndian.PutUint16(frame[2:], uint16(len(header)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(body)))
	binary.BigEndian.PutUint64(frame[8:], id)
	frame = append(append(frame, header...), body...)
	_, err := c.Write(frame)
	check(err)
	return len(frame)
}

// receive returns the next frame that is neither a PING nor to be ignored.
func (c *connection) receive() (byte, uint64, []byte) {
	for {
		prefix := make([]byte, 16)
		_, err := io.ReadFull(c.reader, prefix)
		check(err)
		skipped := int(binary.BigEndian.Uint16(prefix[2:]))
		rest := make([]byte, skipped+int(binary.BigEndian.Uint32(prefix[4:])))
		_, err = io.ReadFull(c.reader, rest)
		check(err)
		id := binary.BigEndian.Uint64(prefix[8:])
		if prefix[0] == ping {
			c.sendRaw(pong, 0, id, nil, nil)
		} else if prefix[0] < 0x80 {
			return prefix[0], id, rest[skipped:]
		}
	}
}

func main() {
	count, err := strconv.Atoi(os.Args[2])
	check(err)
	conn, err := net.DialTimeout("tcp", os.Args[1], 15*time.Second)
	check(err)
	check(conn.SetDeadline(time.Now().Add(15 * time.Second)))
	c := &connection{conn, bufio.NewReader(conn)}
	options := map[string]any{
		"magic": magic, "version": 1, "codec": "json", "features": []string{"streams"},
	}
	check(json.NewEncoder(conn).Encode(options))
	line, err := c.reader.ReadBytes('\n')
	check(err)
	var answer struct {
		Magic    int
		Features []string
	}
	check(json.Unmarshal(line, &answer))
	if answer.Magic != magic || len(answer.Features) != 1 {
		log.Fatalf("no streams: %s", line)
	}

	// A server stream: credit for what was taken, in halves of the window.
	c.send(request, serverStream, 1, []any{"Streams.count", 10000}, []any{count})
	var taken []int
	owed := 0
	for {
		kind, _, body := c.receive()
		if kind == response {
			break
		} else if kind != item {
			log.Fatalf("a frame of type %d: %s", kind, body)
		}
		var value int
		check(json.Unmarshal(body, &value))
		taken = append(taken, value)
		owed += 16 + len(body)
		if owed >= window/2 {
			c.sendRaw(credit, 0, 1, nil, binary.BigEndian.AppendUint32(nil, uint32(owed)))
			owed = 0
		}
	}

	// An upload: as much as there is credit for.
	c.send(request, clientStream, 2, []any{"Streams.total", 10000}, []any{})
	left := window
	for _, value := range taken {
		for left <= 0 {
			kind, _, body := c.receive()
			if kind != credit {
				log.Fatalf("a frame of type %d: %s", kind, body)
			}
			left += int(binary.BigEndian.Uint32(body))
		}
		left -= c.send(item, 0, 2, nil, value)
	}
	c.sendRaw(end, 0, 2, nil, nil)
	for {
		kind, _, body := c.receive()
		if kind == response {
			fmt.Printf("%d taken, their sum is %s\n", len(taken), body)
			return
		} else if kind != credit {
			log.Fatalf("a frame of type %d: %s", kind, body)
		}
	}
}
