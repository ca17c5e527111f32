// Calls Basic.echo over HTTP CONNECT; written from docs/protocol.md. call HOST:PORT TEXT
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

const magic = 0x52504350

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	address, text := os.Args[1], os.Args[2]
	conn, err := net.DialTimeout("tcp", address, 15*time.Second)
	check(err)
	check(conn.SetDeadline(time.Now().Add(15 * time.Second)))

	_, err = io.WriteString(conn, "CONNECT /rpc HTTP/1.0\n\n")
	check(err)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, &http.Request{Method: "CONNECT"})
	check(err)
	if response.StatusCode/100 != 2 {
		log.Fatal(response.Status)
	}

	check(json.NewEncoder(conn).Encode(map[string]any{"magic": magic, "version": 1, "codec": "json"}))
	line, err := reader.ReadBytes('\n')
	check(err)
	var answer struct {
		Magic int
		Error *struct{ Code, Message string }
	}
	check(json.Unmarshal(line, &answer))
	if answer.Error != nil || answer.Magic != magic {
		log.Fatalf("refused: %s", line)
	}

	header, err := json.Marshal([]any{"Basic.echo", 10000})
	check(err)
	body, err := json.Marshal([]any{text})
	check(err)
	frame := make([]byte, 16, 16+len(header)+len(body))
	frame[0] = 0x01
	binary.BigEndian.PutUint16(frame[2:], uint16(len(header)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(body)))
	binary.BigEndian.PutUint64(frame[8:], 1)
	_, err = conn.Write(append(append(frame, header...), body...))
	check(err)

	prefix := make([]byte, 16)
	_, err = io.ReadFull(reader, prefix)
	check(err)
	rest := make([]byte, int(binary.BigEndian.Uint16(prefix[2:]))+int(binary.BigEndian.Uint32(prefix[4:])))
	_, err = io.ReadFull(reader, rest)
	check(err)
	value := rest[binary.BigEndian.Uint16(prefix[2:]):]
	if prefix[0] != 0x02 {
		log.Fatalf("a frame of type %d: %s", prefix[0], value)
	}
	var result string
	check(json.Unmarshal(value, &result))
	fmt.Println(result)
}
