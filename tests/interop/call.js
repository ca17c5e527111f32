// Calls Basic.echo over HTTP CONNECT; written from docs/protocol.md. node call.js HOST PORT TEXT
"use strict";
const net = require("node:net");

const [host, port, text] = process.argv.slice(2);
const socket = net.connect(Number(port), host);
let buffer = Buffer.alloc(0);
let expects = head;

socket.setTimeout(15000, () => fail("nothing came for 15 s"));
socket.on("error", (error) => fail(error.message));
socket.on("end", () => fail("the server hung up"));
socket.write(`CONNECT ${host}:${port} HTTP/1.1\r\nHost: ${host}:${port}\r\n\r\n`);
socket.on("data", (data) => {
  buffer = Buffer.concat([buffer, data]);
  while (expects());
});

function fail(why) {
  console.error(why);
  process.exit(1);
}

// Each takes one thing out of the buffer, and tells whether it was there.

function head() {
  const end = buffer.indexOf("\r\n\r\n");
  if (end < 0) return false;
  const status = buffer.subarray(0, end).toString("latin1").split("\r\n")[0];
  if (!/^HTTP\/1\.[01] 2\d\d /.test(status)) fail(status);
  buffer = buffer.subarray(end + 4);
  socket.write(JSON.stringify({ magic: 0x52504350, version: 1, codec: "json" }) + "\n");
  expects = options;
  return true;
}

function options() {
  const end = buffer.indexOf("\n");
  if (end < 0) return false;
  const answer = JSON.parse(buffer.subarray(0, end));
  if (answer.error) fail(`${answer.error.code}: ${answer.error.message}`);
  buffer = buffer.subarray(end + 1);
  const header = Buffer.from(JSON.stringify(["Basic.echo", 10000]));
  const body = Buffer.from(JSON.stringify([text]));
  const prefix = Buffer.alloc(16);
  prefix.writeUInt8(0x01, 0);
  prefix.writeUInt16BE(header.length, 2);
  prefix.writeUInt32BE(body.length, 4);
  prefix.writeBigUInt64BE(1n, 8);
  socket.write(Buffer.concat([prefix, header, body]));
  expects = response;
  return true;
}

function response() {
  if (buffer.length < 16) return false;
  const start = 16 + buffer.readUInt16BE(2);
  const end = start + buffer.readUInt32BE(4);
  if (buffer.length < end) return false;
  const type = buffer.readUInt8(0);
  const body = buffer.subarray(start, end).toString();
  buffer = buffer.subarray(end);
  if (type !== 0x02) fail(`a frame of type ${type}: ${body}`);
  console.log(JSON.parse(body));
  process.exit(0);
}
